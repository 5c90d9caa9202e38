"""What must not change the value of any objective for language models: padding, order, shifted logits, length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys.language import tiny, tiny_dataset
from tests.toys.language_objectives import Bench, Bigram, answers_of
from unlearn.config.registry import COMPONENTS, resolve
from unlearn.core.errors import RecipeError
from unlearn.data.base import Batch
from unlearn.objectives.base import Objective
from unlearn.objectives.language.kl import KL
from unlearn.objectives.language.target_logits import recall_logits

NAMES = [name for name, path in COMPONENTS["objective"].items() if ".language." in path]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"beta": 0.5} if name == "simnpo" else {}) for name in NAMES),  # at 4.5 it has no slope left here
    ("kl", {"top_k": 5}),
    ("dpo", {"instead": "alternate"}),
    ("gradient_ascent", {}),
    ("gradient_ascent", {"reduction": "sum"}),
    ("maximum_entropy", {"tokens": "all"}),
    ("rmu", {"tokens": "all"}),
    ("embedding_difference", {"tokens": "all"}),
]
IDS = [0, 1, 4, 7]
ON_STATES = {"rmu", "embedding_difference"}
OTHER_ANSWER = {"idk_nll"}
"""Scores only the other answer, whose batch the data makes."""


def questions() -> Any:
    """The questions of the small data, without its passages, which have no refusal."""
    dataset = tiny_dataset()
    keep = [index for index, item in enumerate(dataset.items) if item.question]
    chosen = type(dataset)([dataset.items[index] for index in keep], torch.zeros(len(keep), dtype=torch.bool))
    return chosen.encoded_by(dataset.encoder)


def bench(folder: Path, name: str, settings: dict[str, Any]) -> Bench:
    """The term prepared on the target, then a model that has moved."""
    objective: Objective = resolve("objective", name)(**settings)
    own = Bench(folder, tiny(dtype=torch.float64), questions(), objective)
    with torch.no_grad():
        for index, parameter in enumerate(own.model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter += 0.05 * noise
    return own


def padded(batch: Batch, by: int, token: int) -> Batch:
    shape = (len(batch["id"]), by)
    more = {"tokens": torch.full(shape, token), "mask": torch.zeros(shape).bool(), "answer": torch.zeros(shape).bool()}
    return {**batch, **{key: torch.cat((batch[key], value), dim=1) for key, value in more.items()}}


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_padding_order_and_company_change_nothing(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """More padding, other tokens in it, another order, and each item alone; the control: another real token."""
    own = bench(tmp_path, name, settings)
    with torch.no_grad():
        batch = own.dataset.batch(torch.tensor(IDS))
        values = own.values(batch=batch).values
        assert values.shape == (4,) and values.isfinite().all() and (values != values[0]).any()
        for token in (0, 5):
            assert close(own.values(batch=padded(batch, 7, token)).values, values)
        assert close(own.values(IDS[::-1]).values, values.flip(0))
        assert close(torch.cat([own.values([item]).values for item in IDS]), values)
        other = {**batch, "tokens": torch.where(batch["mask"], (batch["tokens"] + 1) % 300, 0)}
        assert close(own.values(batch=other).values, values) == (name in OTHER_ANSWER)


class Shifted(nn.Module):
    """A head whose logits are shifted: all by the same, which changes no probability, or one of them."""

    def __init__(self, head: nn.Module, by: Tensor) -> None:
        super().__init__()
        self.inner, self.by = head, by

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.inner(states)
        return logits + self.by.to(logits)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_a_shift_of_all_logits_changes_nothing(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Neither the value nor the gradient; the control: a shift of half the logits does (where logits matter)."""
    own = bench(tmp_path, name, settings)
    outcomes = []
    own.values(IDS)  # the target's head is taken before the model's is shifted
    head = own.model.head
    for by in (torch.zeros(300), torch.full((300,), 30.0), (torch.arange(300) % 2) * 3.0):
        own.model.head = lambda by=by: Shifted(head(), by)
        own.model.zero_grad()
        values = own.values(IDS).values
        values.sum().backward()
        outcomes.append((values.detach(), own.model.model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    (plain, gradient), (shifted, same), (half, other) = outcomes
    assert close(plain, shifted) and torch.allclose(gradient, same, rtol=1e-7, atol=1e-9)
    assert close(plain, half) == close(gradient, other) == (name in ON_STATES)


@pytest.mark.parametrize(
    ("name", "settings", "by_length"),
    [
        ("gradient_ascent", {}, False),
        ("gradient_ascent", {"reduction": "sum"}, True),
        ("npo", {}, True),
        ("simnpo", {}, False),
        ("dpo", {}, True),
        ("answer_preservation", {}, True),
        ("wga", {}, False),
        ("wga", {"reduction": "sum"}, True),
        ("satimp", {}, False),
        ("satimp", {"reduction": "sum"}, True),
        ("ceu", {}, False),
        ("pdu", {}, False),
        ("flat", {}, False),
        ("maximum_entropy", {}, False),
        ("undial", {}, False),
        ("kl", {}, False),
        ("pdu_retain", {}, False),
        ("nll", {}, False),
    ],
    ids=str,
)
def test_length(name: str, settings: dict[str, Any], by_length: bool, tmp_path: Path) -> None:
    """Answers of 2 and of 6 tokens, each as likely: means are equal, sums are not."""
    own = Bench(tmp_path, Bigram(0.9), answers_of("aa", "aaaaaa"), resolve("objective", name)(**settings))
    own.model.become(0.7)
    items = own.dataset.items
    items[1].forms["refusal"] = items[0].forms["refusal"] = ("b", "ab")  # the same for both
    own.dataset.words = lambda index, form="": items[index].forms.get(
        form, (items[index].question, items[index].answer)
    )
    own.dataset._encoded.clear()
    short, long = own.values().values.tolist()
    assert (short == pytest.approx(long, rel=1e-9)) == (not by_length)


@pytest.mark.parametrize("k", [1, 10, 299])
def test_top_k_errs_by_what_it_says(k: int, tmp_path: Path) -> None:
    """exact - top_k = sum over tokens of p_rest KL(rest of the target || rest of the model), never negative."""
    exact, top = bench(tmp_path, "kl", {}), bench(tmp_path, "kl", {"top_k": k})
    with torch.no_grad():
        batch = exact.dataset.batch(torch.tensor(IDS))
        answers = exact.model.answers(batch)
        target = recall_logits(exact.model, exact.context(), batch["id"]).softmax(1)
        model = answers.logits.softmax(1)
        rest = torch.ones_like(target).scatter(1, target.topk(k, dim=1).indices, 0.0).bool()
        p, q = target * rest, model * rest
        p_rest, q_rest = p.sum(1, keepdim=True), q.sum(1, keepdim=True)
        inside = torch.where(rest, p / p_rest * ((p / p_rest).log() - (q / q_rest).log()), 0.0).sum(1)
        error = answers.means(p_rest.squeeze(1) * inside)
        difference = exact.values(batch=batch).values - top.values(batch=batch).values
    assert torch.allclose(difference, error, atol=1e-9) and (error >= -1e-12).all()
    assert (error > 1e-3).all() if k < 299 else error.abs().max() < 1e-9


def test_top_k_must_leave_something_over(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="top_k"):
        Bench(tmp_path, tiny(), questions(), KL(top_k=300))
