"""Networks trained beside the model: their steps, their checkpoints, and what they leave alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys import ROOT
from tests.toys.flow import digits_splits, run, small_glow, stop_at
from unlearn.config.recipe import load
from unlearn.core.errors import Interrupted, RecipeError
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Batch
from unlearn.experiment.memory_estimate import of_a_step
from unlearn.models.base import MetaModel, frozen
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values
from unlearn.objectives.surgery import OneSided
from unlearn.training.build import build_module
from unlearn.training.model_selection import trained_weights
from unlearn.training.module import UnlearningModule


class Scorer(nn.Module):
    """One weight a pixel, and one that holds still."""

    def __init__(self, randomness: Randomness) -> None:
        super().__init__()
        first = randomness.normal(torch.zeros(1, dtype=torch.int64), (64,), torch.float64)[0]
        self.weight = nn.Parameter(0.1 * first)
        self.still = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

    def forward(self, batch: Batch) -> Tensor:
        return self.still * (batch["image"].double().flatten(1) / 16) @ self.weight


@dataclass(frozen=True, kw_only=True)
class Likelihood(Objective):
    """The scorer learns an item's training loss, and leaves it for the model, which weighs it by the score."""

    lr: float = 0.1
    warmup: int = 0
    sign: float = 1.0

    def auxiliary(self, model: Any, teacher: Callable[[], Any], split: str, randomness: Randomness) -> AuxiliaryNetwork:
        return AuxiliaryNetwork(
            name="scorer",
            build=lambda: Scorer(randomness),
            groups={split: {"own": Learns()}},
            optim=lambda optim: replace(optim, lr=self.lr),
            warmup=self.warmup,
        )

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        loss = context.shared.pop(("loss", context.split, id(batch)), None)
        found = loss is not None
        loss = model.training_loss(batch, context.randomness) if loss is None else loss
        with frozen(context.auxiliary):  # type: ignore[arg-type]
            score = context.auxiliary(batch)  # type: ignore[misc]
        return Values(self.sign * loss * score.sigmoid(), {"found": torch.full_like(score.detach(), float(found))})


@dataclass(frozen=True, kw_only=True)
class Learns(Objective):
    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        loss = model.training_loss(batch, context.randomness)
        if context.step >= 0 and loss.requires_grad:
            context.shared["loss", context.split, id(batch)] = loss
        return Values((context.auxiliary(batch) - loss.detach()) ** 2)  # type: ignore[misc]


OPTIM = Optim(steps=4, batch=16, lr=1e-3)


def module_of(
    optim: Optim = OPTIM,
    combine: Any = None,
    forget: Likelihood | None = None,
    retain: Likelihood | None = None,
    every: int = 1,
    **settings: Any,
) -> UnlearningModule:
    splits = digits_splits()
    model, target = small_glow(splits), small_glow(splits)
    groups = {"forget": {"up": forget or Likelihood(sign=-1.0)}, "retain": {"down": retain or Likelihood()}}
    target_model = ReferenceModel(lambda: target)
    module = build_module(model, splits, 0, **groups, optim=optim, combine=combine, target=target_model, **settings)
    for phase in module.phases:
        phase.every = 1 if phase.primary else every
    return module


def weights(module: UnlearningModule) -> dict[str, Tensor]:
    found = [{name: p.detach().clone() for name, p in phase.parameters.items()} for phase in module.phases]
    return {name: value for part in found for name, value in part.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_terms_that_name_one_network_share_it() -> None:
    module = module_of()
    scorer, primary = module.phases
    assert len(module.phases) == 2 and primary.primary and not scorer.primary
    assert {group: list(terms) for group, terms in scorer.groups.items()} == {
        "forget": ["up_own"],
        "retain": ["down_own"],
    }
    terms = ("forget/up", "retain/down", "forget/up_own", "retain/down_own")
    assert {id(module._context(term).auxiliary) for term in terms} == {id(scorer.network)}
    assert list(scorer.parameters) == ["scorer.weight"]  # what holds still is no part of the phase
    assert scorer.optim == replace(OPTIM, lr=0.1)


def test_terms_that_ask_for_different_steps_of_one_network_are_refused() -> None:
    with pytest.raises(RecipeError, match="forget/up and retain/down share the network 'scorer'"):
        module_of(forget=Likelihood(lr=0.2))
    with pytest.raises(RecipeError, match="warmup 0 and 3"):
        module_of(retain=Likelihood(warmup=3))


def test_an_average_is_of_the_model_alone_and_steps_are_its(tmp_path: Path) -> None:
    module = module_of(replace(OPTIM, ema=0.9))
    run(module, tmp_path)
    names = {name for name, _ in module.model.named_parameters()}
    assert set(module.average.values) == names == set(trained_weights(module))
    assert module.step_count == module.trainer.global_step == 4
    assert module.phases[0].optim.ema is None


def test_the_companion_steps_first_and_leaves_its_forward_pass(tmp_path: Path) -> None:
    """One SGD step of rate 1: the model's gradient is taken with the scorer as its own step has left it."""
    optim = Optim(name="sgd", steps=1, batch=16, lr=1.0)
    module = module_of(optim, log_every=1)
    before, start = weights(module), Scorer(Randomness(0, "companion").child("forget/up"))
    batches = feed_of(module)[0]
    scorer = Scorer(Randomness(0, "companion").child("forget/up"))
    losses = {
        group: module.model.training_loss(batches[group][0], module._context(f"{group}/{name}").randomness)
        for group, name in (("forget", "up_own"), ("retain", "down_own"))
    }
    own = sum(((scorer(batches[group][0]) - loss.detach()) ** 2).mean() for group, loss in losses.items())
    (moved,) = torch.autograd.grad(own, [scorer.weight])  # type: ignore[arg-type]
    with torch.no_grad():
        scorer.weight -= 0.1 * moved
    score = {group: scorer(batches[group][0]).sigmoid().detach() for group in losses}
    total = (losses["retain"] * score["retain"]).mean() - (losses["forget"] * score["forget"]).mean()
    names = [name for name, _ in module.model.named_parameters()]
    wanted = dict(zip(names, torch.autograd.grad(total, list(module.model.parameters())), strict=True))
    run(module, tmp_path)
    after = weights(module)
    assert torch.allclose(after["scorer.weight"], scorer.weight.detach(), atol=1e-12)
    assert max(float((before[n] - wanted[n] - after[n]).abs().max()) for n in names) < 1e-9
    assert float((start.weight - scorer.weight).detach().abs().max()) > 1e-3  # the control: it had moved before
    row = next(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert float(row["forget/found"]) == float(row["retain/found"]) == 1
    assert "scorer/loss/forget/up_own" in row and "scorer/grad_norm" in row


def feed_of(module: UnlearningModule) -> Any:
    from unlearn.training.dataloader import StepLoader

    sizes = {"forget": module.primary.optim.batch, "retain": module.primary.optim.batch}
    return StepLoader(module.common.splits, sizes, module.common.randomness.child("order"))


def test_a_warm_up_moves_the_companion_alone_and_counts_no_step(tmp_path: Path) -> None:
    """Three steps of the scorer at a model that stands; with as many model steps as without."""
    warm = Likelihood(warmup=3)
    module = module_of(forget=replace(warm, sign=-1.0), retain=warm, log_every=1)
    start, seen = weights(module), []

    def note(*_: Any) -> None:
        seen.append((module.step_count, weights(module)))

    module.on_train_batch_end = note  # type: ignore[method-assign]
    run(module, tmp_path)
    assert [step for step, _ in seen] == [-2, -1, 0, 1, 2, 3, 4]
    for _, found in seen[:3]:
        still = {name: value for name, value in found.items() if name != "scorer.weight"}
        assert equal(still, {name: value for name, value in start.items() if name != "scorer.weight"})
    moved = [start, *(found for _, found in seen)]
    assert all(not torch.equal(a["scorer.weight"], b["scorer.weight"]) for a, b in pairwise(moved))
    assert module.trainer.global_step == 4
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["-3", "-2", "-1", "0", "1", "2", "3"]
    assert rows[0]["grad_norm"] == "" != rows[0]["scorer/grad_norm"]


@pytest.mark.parametrize("stop", [-2, 3])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(stop: int, tmp_path: Path) -> None:
    """Cut off in the warm-up, and after it; both networks and both optimizers go on where they stood."""
    optim = replace(OPTIM, steps=5, ema=0.9, schedule="cosine")
    warm = Likelihood(warmup=3)

    def made() -> UnlearningModule:
        return module_of(optim, OneSided(), replace(warm, sign=-1.0), warm)

    whole = made()
    run(whole, tmp_path / "whole", checkpoint_every=2)
    cut = made()
    stop_at(cut, stop)
    with pytest.raises(Interrupted, match=f"step {max(0, stop)} of 5"):
        run(cut, tmp_path / "cut", checkpoint_every=2)
    again = made()
    with torch.no_grad():
        for phase in again.phases:
            for parameter in phase.parameters.values():
                parameter += 1  # whatever they begin with, the checkpoint holds them all
    run(again, tmp_path / "cut", checkpoint_every=2)
    assert equal(weights(again), weights(whole))
    assert not equal(weights(cut), weights(whole))


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole, parts, other = module_of(), module_of(replace(OPTIM, accumulate=3)), module_of(replace(OPTIM, batch=15))
    for number, module in enumerate((whole, parts, other)):
        run(module, tmp_path / str(number))
    gaps = [max(float((weights(whole)[n] - weights(m)[n]).abs().max()) for n in weights(m)) for m in (parts, other)]
    assert gaps[0] < 1e-9 < 1e-6 < gaps[1]


def test_a_network_that_steps_seldom_stands_between(tmp_path: Path) -> None:
    module, steps = module_of(every=2), []
    module.on_train_batch_end = lambda *_: steps.append(weights(module)["scorer.weight"])  # type: ignore
    run(module, tmp_path)
    assert [torch.equal(a, b) for a, b in pairwise(steps)] == [True, False, True]


def test_a_loss_that_reaches_no_companion_parameter_is_refused(tmp_path: Path) -> None:
    module = module_of()
    lost = nn.Parameter(torch.zeros((), dtype=torch.float64))
    module.phases[0].parameters["scorer.lost"] = lost
    with pytest.raises(RecipeError, match=r"Phase 'scorer'.*scorer\.lost"):
        run(module, tmp_path)


def test_the_estimate_counts_the_companion() -> None:
    """65 weights in double precision, 64 of them with a gradient and Adam's two averages."""
    recipe = load(ROOT / "tests" / "toys" / "recipes" / "small.yaml")
    module = module_of()
    meta_model = MetaModel(module.model, lambda split, items: 0, "none")  # type: ignore[arg-type]
    assert of_a_step(recipe, meta_model, module)["scorer, which is trained with it"] == 8 * (65 + 3 * 64)


def test_a_companion_goes_where_the_model_goes() -> None:
    module = module_of().to(torch.float32)
    assert {p.dtype for p in (*module.model.parameters(), *module.auxiliary_networks.parameters())} == {torch.float32}
    assert {p.dtype for phase in module.phases for p in phase.parameters.values()} == {torch.float32}
