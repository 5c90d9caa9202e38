"""Objectives on the forget answer alone, in closed form on two tokens.

The model says token 1 with probability q wherever it stands; the answer is n times token 1. The logits are (0, l) with
l = log(q / (1 - q)), so d log q / d l = 1 - q. In the model's table l stands in row 1; the first answer token follows
the question's token 0 (column 0), every later one a token 1 (column 1).
"""

import math
from pathlib import Path

import pytest
import torch

from tests.toys.language_objectives import Bench, Bigram, answers_of, logit
from unlearn.objectives.base import Objective
from unlearn.objectives.common.gradient_ascent import GradientAscent
from unlearn.objectives.language.ceu import CEU
from unlearn.objectives.language.maximum_entropy import MaximumEntropy
from unlearn.objectives.language.pdu import PDU, PDURetain
from unlearn.objectives.language.satimp import SatImp
from unlearn.objectives.language.simnpo import SimNPO
from unlearn.objectives.language.wga import WGA

Q = 0.8
LOG_Q = math.log(Q)


def bench(folder: Path, objective: Objective, answer: str = "aaa", q: float = Q) -> Bench:
    return Bench(folder, Bigram(q), answers_of(answer, "ab"), objective)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (GradientAscent(), LOG_Q),
        (GradientAscent(reduction="sum"), 3 * LOG_Q),
        (SimNPO(beta=2.5), 2 / 2.5 * math.log(1 + Q**2.5)),
        (SimNPO(beta=2.5, margin=0.7), 2 / 2.5 * math.log(1 + Q**2.5 * math.exp(0.7))),
        (SimNPO(beta=2.5, margin=0.7, scaled_margin=True), 2 / 2.5 * math.log(1 + Q**2.5 * math.exp(2.5 * 0.7))),
        (WGA(beta=3.0), Q**3 * LOG_Q),
        (WGA(beta=3.0, reduction="sum"), 3 * Q**3 * LOG_Q),
        (WGA(beta=0.0), LOG_Q),
        (SatImp(beta1=2.0, beta2=3.0), Q**2 * (1 - Q) ** 3 * LOG_Q),
        (SatImp(beta1=2.0, beta2=3.0, reduction="sum"), 3 * Q**2 * (1 - Q) ** 3 * LOG_Q),
        (SatImp(beta1=3.0, beta2=0.0), Q**3 * LOG_Q),
        (CEU(), -math.log(1 - Q)),
        (CEU(ignore_first=0), -math.log(1 - Q)),
        (CEU(ignore_first=3), 0.0),
        (MaximumEntropy(), -math.log(2) - (LOG_Q + math.log(1 - Q)) / 2),
        (MaximumEntropy(tokens="all"), -math.log(2) - (LOG_Q + math.log(1 - Q)) / 2),
        (PDU(), logit(Q) ** 2 / 4),
    ],
    ids=repr,
)
def test_the_value_is_the_formulas(objective: Objective, value: float, tmp_path: Path) -> None:
    """Each formula with p_t = q at every token; that of PDU: max(0, l) - l / 2 = |l| / 2 for logits (0, l)."""
    assert bench(tmp_path, objective).value() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        (GradientAscent(), 1 - Q),
        (GradientAscent(reduction="sum"), 3 * (1 - Q)),
        (SimNPO(beta=2.5), 2 * Q**2.5 / (1 + Q**2.5) * (1 - Q)),
        (WGA(beta=3.0), Q**3 * (1 - Q)),
        (SatImp(beta1=2.0, beta2=3.0), Q**2 * (1 - Q) ** 3 * (1 - Q)),
        (CEU(), Q),
        (MaximumEntropy(), Q - 0.5),
        (PDU(), logit(Q) / 2),
    ],
    ids=repr,
)
def test_the_gradient_is_the_formulas_with_fixed_weights(objective: Objective, slope: float, tmp_path: Path) -> None:
    """d value / d l, over both columns of the table. WGA's and SatImp's weights and CE-U's target do not move:
    d(w log q)/dl = w (1 - q); for CE-U -d log(1 - q)/dl = q, which is q - 0, the target being token 0."""
    assert bench(tmp_path, objective).gradient()[1].sum().item() == pytest.approx(slope, abs=1e-12)


def test_weights_that_moved_would_give_another_gradient() -> None:
    """The control: d(q^3 log q)/dl = (3 q^3 log q + q^3)(1 - q), against q^3 (1 - q) with a fixed weight."""
    odds = torch.tensor(logit(Q), dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(odds)
    (p**3 * p.log()).backward()
    assert odds.grad.item() == pytest.approx((3 * Q**3 * LOG_Q + Q**3) * (1 - Q))
    assert abs(odds.grad.item() - Q**3 * (1 - Q)) > 0.05


def test_simnpos_margin_stands_outside_of_beta_unless_asked_for(tmp_path: Path) -> None:
    """At beta 1 both are the same; at beta 2.5 they are not."""
    values = [
        bench(tmp_path, SimNPO(beta=beta, margin=0.7, scaled_margin=scaled)).value()
        for beta in (1.0, 2.5)
        for scaled in (False, True)
    ]
    assert values[0] == pytest.approx(values[1]) and abs(values[2] - values[3]) > 0.1


def test_ceu_leaves_the_first_answer_token_out(tmp_path: Path) -> None:
    """The first answer token follows token 0, whose column then gets no gradient; without the setting it does."""
    assert bench(tmp_path, CEU()).gradient()[:, 0].abs().max() == 0
    assert bench(tmp_path, CEU(ignore_first=0)).gradient()[:, 0].abs().max() > 0.1


def test_pdu_flattens_the_first_answer_token_and_nothing_behind_the_last(tmp_path: Path) -> None:
    """The answer "a" after "b": only the distribution after token 0 counts. One position late, as in the code that
    shifts wrongly, it would be the one after token 1, whose logit is larger here."""
    late = logit(0.9) ** 2 / 4
    found = Bench(tmp_path, Bigram(0.6, 0.9), answers_of("a"), PDU())
    assert found.value() == pytest.approx(logit(0.6) ** 2 / 4) and abs(found.value() - late) > 0.5
    assert found.gradient()[:, 1].abs().max() == 0


def test_maximum_entropy_is_least_at_the_uniform_distribution(tmp_path: Path) -> None:
    assert bench(tmp_path, MaximumEntropy(), q=0.5).value() == pytest.approx(0, abs=1e-15)
    assert bench(tmp_path, MaximumEntropy(), q=0.5).gradient().abs().max() < 1e-15
    assert bench(tmp_path, MaximumEntropy(), q=0.6).value() > 0.01


def test_all_tokens_means_the_question_too(tmp_path: Path) -> None:
    """Tokens 0 0 1 1, the last one the answer: all are what follows 0, 0 and 1; the answer is what follows 1."""
    batch = {"id": torch.tensor([0]), "tokens": torch.tensor([[0, 0, 1, 1]]), "mask": torch.ones(1, 4).bool()}
    batch["answer"] = torch.tensor([[False, False, False, True]])

    def divergence(q: float) -> float:
        return -math.log(2) - (math.log(q) + math.log(1 - q)) / 2

    for tokens, value in (("all", (2 * divergence(0.8) + divergence(0.6)) / 3), ("answer", divergence(0.6))):
        own = Bench(tmp_path, Bigram(0.8, 0.6), answers_of("a"), MaximumEntropy(tokens=tokens))
        assert own.values(batch=batch).values.item() == pytest.approx(value)


def test_the_dual_variable_follows_the_retain_loss(tmp_path: Path) -> None:
    """epsilon = 1.5 * NLL of the target; lambda <- max(0, lambda + 2 (NLL - epsilon)), from step 3 on."""
    objective = PDURetain(tolerance=0.5, rate=2.0, start=4.0, warmup=3)
    own = Bench(tmp_path, Bigram(Q), answers_of("aaa", "aa"), objective, split="retain")
    nll = -LOG_Q
    assert own.state == {"dual": 4.0, "epsilon": pytest.approx(1.5 * nll)}
    found = own.values()
    assert found.values.tolist() == pytest.approx([4 * nll] * 2)
    assert found.diagnostics["nll"].tolist() == pytest.approx([nll] * 2)
    objective.after_step({"nll": 1.0}, own.context(step=2))
    assert own.state["dual"] == 4.0
    objective.after_step({"nll": 1.0}, own.context(step=3))
    assert own.state["dual"] == pytest.approx(4 + 2 * (1 - 1.5 * nll))
    objective.after_step({"nll": -50.0}, own.context(step=4))
    assert own.state["dual"] == 0.0 and own.values().values.abs().max() == 0


def test_a_given_limit_is_taken(tmp_path: Path) -> None:
    own = Bench(tmp_path, Bigram(Q), answers_of("aaa"), PDURetain(epsilon=0.3, start=2.0), split="retain")
    assert own.state == {"dual": 2.0, "epsilon": 0.3}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SimNPO, {"beta": 0.0}),
        (WGA, {"beta": -1.0}),
        (SatImp, {"beta1": -1.0}),
        (SatImp, {"beta2": math.nan}),
        (CEU, {"ignore_first": -1}),
        (PDURetain, {"epsilon": 0.0}),
        (PDURetain, {"tolerance": 0.0}),
        (PDURetain, {"rate": -1.0}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)
