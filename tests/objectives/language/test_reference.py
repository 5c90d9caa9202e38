"""Objectives against the target or another answer, in closed form on two tokens.

The target says token 1 with probability p wherever it stands, the model, later, with q; an answer is n times token 1.
"""

import math
from pathlib import Path

import pytest
import torch

from tests.toys.language_objectives import Bench, Bigram, answers_of, logit, refusal_counts, sigmoid
from unlearn.core.errors import RecipeError
from unlearn.data.base import Split
from unlearn.objectives.base import Objective
from unlearn.objectives.common.gradient_ascent import GradientAscent
from unlearn.objectives.language.answer_preservation import AnswerPreservation
from unlearn.objectives.language.dpo import DPO
from unlearn.objectives.language.flat import FLAT
from unlearn.objectives.language.idk_nll import IdkNLL
from unlearn.objectives.language.kl import KL
from unlearn.objectives.language.npo import NPO
from unlearn.objectives.language.target_logits import bucketed, recall_logits
from unlearn.objectives.language.undial import UNDIAL

P, Q, N = 0.9, 0.7, 3
ONES, ZEROS = refusal_counts()
REFUSAL = ONES * math.log(Q) + ZEROS * math.log(1 - Q)
REFUSAL_RATIO = ONES * math.log(Q / P) + ZEROS * math.log((1 - Q) / (1 - P))
FORGET_RATIO = N * math.log(Q / P)
KL_VALUE = P * math.log(P / Q) + (1 - P) * math.log((1 - P) / (1 - Q))


def bench(folder: Path, objective: Objective, moved: bool = True) -> Bench:
    """The target's values are taken at p; then the model moves to q."""
    own = Bench(folder, Bigram(P), answers_of("aaa", "ab", alternate="bb"), objective)
    if moved:
        own.model.become(Q)
    return own


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def undial(beta: float) -> float:
    teacher = sigmoid(logit(P) - beta)
    return -teacher * math.log(Q) - (1 - teacher) * math.log(1 - Q)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (NPO(beta=0.5), 2 / 0.5 * math.log(1 + (Q / P) ** (0.5 * N))),
        (DPO(beta=0.5), softplus(-0.5 * (REFUSAL_RATIO - FORGET_RATIO))),
        (DPO(beta=0.5, variant="released"), 2 / 0.5 * softplus(-0.5 * (REFUSAL_RATIO - FORGET_RATIO))),
        (DPO(beta=0.5, instead="alternate"), softplus(-0.5 * (2 * math.log((1 - Q) / (1 - P)) - FORGET_RATIO))),
        (IdkNLL(), -REFUSAL / (ONES + ZEROS)),
        (IdkNLL(instead="alternate"), -math.log(1 - Q)),
        (AnswerPreservation(beta=0.5), 1 / 0.5 * softplus(0.5 * (REFUSAL - N * math.log(Q)))),
        (UNDIAL(beta=2.0), undial(2.0)),
        (UNDIAL(beta=0.0), undial(0.0)),
        (KL(), KL_VALUE),
        (KL(top_k=1), KL_VALUE),
    ],
    ids=repr,
)
def test_the_value_is_the_formulas(objective: Objective, value: float, tmp_path: Path) -> None:
    """Of two tokens, one alone and the other as "all others" are the exact divergence."""
    assert bench(tmp_path, objective).value() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_equal_models(beta: float, tmp_path: Path) -> None:
    """log(p / p_target) = 0: NPO is (2 / beta) log 2, DPO log 2, KL 0 without gradient. Moved, none of it holds."""
    assert bench(tmp_path, NPO(beta=beta), moved=False).value() == pytest.approx(2 / beta * math.log(2))
    assert bench(tmp_path, DPO(beta=beta), moved=False).value() == pytest.approx(math.log(2))
    for objective in (KL(), KL(top_k=1)):
        same = bench(tmp_path, objective, moved=False)
        assert same.value() == pytest.approx(0, abs=1e-15) and same.gradient().abs().max() < 1e-15
        assert bench(tmp_path, objective).value() > 0.1
    assert bench(tmp_path, NPO(beta=beta)).value() < 2 / beta * math.log(2) - 0.1


def test_npos_gradient_is_the_weighted_gradient_of_ascent(tmp_path: Path) -> None:
    """Weight 2 p^beta / (p^beta + p_target^beta) of whole answers, here (q / p)^(beta n)."""
    ascent = bench(tmp_path, GradientAscent(reduction="sum")).gradient()
    for beta in (0.1, 1.0, 5.0):
        ratio = (Q / P) ** (beta * N)
        gradient = bench(tmp_path, NPO(beta=beta)).gradient()
        assert torch.allclose(gradient, 2 * ratio / (1 + ratio) * ascent, atol=1e-12)


def test_npos_gradient_tends_to_that_of_ascent_on_the_sum(tmp_path: Path) -> None:
    """The difference falls in proportion to beta; the control at beta 5 is far, and so is the mean's gradient."""
    ascent = bench(tmp_path, GradientAscent(reduction="sum")).gradient()
    mean = bench(tmp_path, GradientAscent()).gradient()
    far, near, nearest = (
        (bench(tmp_path, NPO(beta=beta)).gradient() - ascent).norm() / ascent.norm() for beta in (5.0, 1e-2, 1e-4)
    )
    assert far > 0.5 and nearest < 1e-4 and near / nearest == pytest.approx(100, rel=0.01)
    assert (mean - ascent).norm() / ascent.norm() > 0.5


def test_undials_minimum_is_the_lowered_target(tmp_path: Path) -> None:
    """The gradient q - sigma(logit p - beta) is 0 where the model is the teacher, and elsewhere it is not."""
    own = bench(tmp_path, UNDIAL(beta=2.0))
    assert own.gradient()[1].sum().item() == pytest.approx(Q - sigmoid(logit(P) - 2))
    own.model.become(sigmoid(logit(P) - 2))
    assert own.gradient().abs().max() < 1e-12


def test_undial_counts_the_answer_only(tmp_path: Path) -> None:
    """The prompt's and the padding's distributions get no gradient: answer "a" after "b" touches column 0 alone,
    though the batch's other item is longer and pads it."""
    own = Bench(tmp_path, Bigram(P, 0.4), answers_of("a", "aaaa"), UNDIAL())
    own.values().values[0].backward()
    assert own.model.linear.weight.grad[:, 1].abs().max() == 0
    assert own.model.linear.weight.grad[:, 0].abs().max() > 0.1


def test_the_target_is_remembered_not_the_model(tmp_path: Path) -> None:
    """A second part of the run, whose model has moved, reads the target's logits from the disk."""
    own = bench(tmp_path, KL())
    resumed = Bench(tmp_path, Bigram(Q), own.dataset, GradientAscent())
    resumed.model.become(0.2)
    found = recall_logits(resumed.model, resumed.context(), torch.tensor([0]))
    assert torch.allclose(found.softmax(1)[:, 1], torch.tensor(P, dtype=torch.float64))
    assert not torch.allclose(resumed.model.answers(own.dataset.batch(torch.tensor([0]))).logits, found)


def test_items_without_the_other_answer_are_refused() -> None:
    splits = {"forget": Split("forget", answers_of("a", "b"), torch.arange(2))}
    for objective in (DPO(instead="alternate"), IdkNLL(instead="alternate"), FLAT(instead="alternate")):
        with pytest.raises(RecipeError, match="forget=npo"):
            objective.check(splits, "forget")
    DPO().check(splits, "forget")  # the control: each question has a refusal


@pytest.mark.parametrize("kind", [NPO, DPO, AnswerPreservation])
def test_beta_must_be_positive(kind: type) -> None:
    with pytest.raises(ValueError, match="beta"):
        kind(beta=0.0)
    with pytest.raises(ValueError, match="beta"):
        UNDIAL(beta=-1.0)
    with pytest.raises(ValueError, match="top_k"):
        KL(top_k=0)


def test_the_gradient_of_the_chosen_tokens_and_the_rest() -> None:
    """Against finite differences; also where the rest is so unlikely that its share of the logits' softmax is 1e-13."""
    stream = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 20, dtype=torch.float64, generator=stream)
    tokens = torch.stack([torch.randperm(20, generator=stream)[:4] for _ in range(5)])
    assert torch.autograd.gradcheck(lambda some: bucketed(some, tokens), (logits.requires_grad_(),))
    sums = bucketed(logits, tokens).exp().sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    sure = torch.tensor([[30.0, 1.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(bucketed(sure, torch.tensor([[0]]))[0, 1], sure)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, sigmoid(1), sigmoid(-1)]]))
