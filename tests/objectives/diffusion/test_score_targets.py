"""Score targets against their hand formulas, on models that have moved, conditioned on classes and on prompts.

Every value is the mean over the values of an item of the square of (the model's score - its target), with states and
scores computed here one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import Bench, Conditioning, moved
from unlearn.core.errors import RecipeError
from unlearn.models.conditioning import Condition
from unlearn.objectives.base import Objective
from unlearn.objectives.common.gradient_ascent import GradientAscent
from unlearn.objectives.diffusion.concept_ablation import ConceptAblation
from unlearn.objectives.diffusion.denoising_ascent import DenoisingAscent
from unlearn.objectives.diffusion.esd import ESD
from unlearn.objectives.diffusion.noisy_states import AnchorStates, NoisyStateObjective, Source, StateSource
from unlearn.objectives.diffusion.random_label import RandomLabel
from unlearn.objectives.diffusion.score_preservation import ScorePreservation
from unlearn.objectives.diffusion.sdd import SDD

TRAJECTORY = StateSource(source="trajectory", steps=3)

ALL: list[Conditioning] = ["class", "text", "dit"]


def bench(folder: Path, objective: Objective, conditioning: Conditioning, split: str = "forget") -> Bench:
    """The term prepared on the target, then a model that has moved."""
    own = Bench(folder, objective, conditioning, split)
    moved(own.model)
    return own


def square(difference: Tensor) -> Tensor:
    return (difference**2).mean(dim=(1, 2, 3))


def check(own: Bench, formula: Callable[..., Tensor]) -> None:
    """Compare the term with a formula of (model, target, x, t, c_f, c_a, noise, null), and its gradient with that of
    the formula, in which only the model's score at c_f (and a prior's) is followed by autograd.
    """
    found = own.objective.states(own.model, own.batch(), own.context())  # type: ignore[attr-defined]
    null = own.model.null(8)
    wanted = formula(own.model, own.target, found.x, found.t, found.condition, found.anchor, found.noise, null)
    values = own.values().values
    assert values.shape == (8,)
    torch.testing.assert_close(values, wanted, rtol=1e-8, atol=1e-12)
    gradients = []
    for loss in (values, wanted):
        own.model.zero_grad()
        loss.sum().backward()
        gradients.append([p.grad.clone() for p in own.model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(own.model.parameters()))
    for mine, by_hand in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, by_hand, rtol=1e-6, atol=1e-10)
    assert all(p.grad is None for p in own.target.parameters())


@pytest.mark.parametrize("conditioning", ALL)
def test_the_affine_target_is_the_sum_of_single_scores(conditioning: Conditioning, tmp_path: Path) -> None:
    """In one pass, without gradient; a part of weight 0 is not computed."""
    own = bench(tmp_path, DenoisingAscent(), conditioning)
    found = own.objective.states(own.model, own.batch(), own.context())  # type: ignore[attr-defined]
    null, passes = own.model.null(8), []
    with torch.no_grad():
        scores = [own.model.predict(found.x, found.t, c) for c in (null, found.condition, found.anchor)]
    handle = own.model.denoiser.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    parts = [(1.5, null), (-0.5, found.condition), (0.25, found.anchor)]
    target = found.target(own.model, *parts)
    torch.testing.assert_close(target, 1.5 * scores[0] - 0.5 * scores[1] + 0.25 * scores[2])
    less = found.target(own.model, (2.0, null), (-0.0, found.condition))
    torch.testing.assert_close(less, 2 * scores[0])
    handle.remove()
    assert passes == [24, 8] and not target.requires_grad


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("conditioning", ALL)
def test_esd(conditioning: Conditioning, eta: float, tmp_path: Path) -> None:
    """eps_0(c_n) - eta (eps_0(c_f) - eps_0(c_n)), all of the frozen target."""

    def formula(model: Any, target: Any, x: Tensor, t: Tensor, c: Condition, anchor: Any, noise: Any, null: Any) -> Any:
        with torch.no_grad():
            empty, full = target.predict(x, t, null), target.predict(x, t, c)
        released = full - (eta + 1) * (full - empty)  # as the authors' diffusers code writes it
        torch.testing.assert_close(released, empty - eta * (full - empty))
        return square(model.predict(x, t, c) - (empty - eta * (full - empty)))

    check(bench(tmp_path, ESD(eta=eta, states=TRAJECTORY), conditioning), formula)


@pytest.mark.parametrize("conditioning", ALL)
def test_esd_that_erases_a_concept_from_another(conditioning: Conditioning, tmp_path: Path) -> None:
    """The score at c_from becomes eps_0(c_from) - eta (eps_0(c_f) - eps_0(c_n))."""
    name = "a red eight" if conditioning == "text" else "8"

    def formula(model: Any, target: Any, x: Tensor, t: Tensor, c: Condition, anchor: Any, noise: Any, null: Any) -> Any:
        other = model.prompts([name] * 8)
        with torch.no_grad():
            empty, full, base = (target.predict(x, t, each) for each in (null, c, other))
        return square(model.predict(x, t, other) - (base - 1.5 * (full - empty)))

    check(bench(tmp_path, ESD(eta=1.5, states=TRAJECTORY, erase_from=name), conditioning), formula)


def test_esd_at_the_target_is_the_square_of_one_plus_eta_times_the_guidance(tmp_path: Path) -> None:
    """There the score less its target is (1 + eta) (eps_0(c_f) - eps_0(c_n)): value 0 only at eta = -1."""
    values = {}
    for eta in (0.0, 1.0, 3.0):
        values[eta] = Bench(tmp_path, ESD(eta=eta, states=TRAJECTORY), "class").values().values
    torch.testing.assert_close(values[1.0], 4 * values[0.0])
    torch.testing.assert_close(values[3.0], 16 * values[0.0])
    assert values[0.0].min() > 1e-4
    with pytest.raises(ValueError, match="eta"):
        ESD(eta=-1.0)
    with pytest.raises(RecipeError, match="knows no class"):
        Bench(tmp_path, ESD(erase_from="ten"), "class")


@pytest.mark.parametrize("conditioning", ALL)
def test_sdd(conditioning: Conditioning, tmp_path: Path) -> None:
    """eps(c_n) of the model itself, which is not followed by the gradient."""

    def formula(model: Any, target: Any, x: Tensor, t: Tensor, c: Condition, anchor: Any, noise: Any, null: Any) -> Any:
        return square(model.predict(x, t, c) - model.predict(x, t, null).detach())

    check(bench(tmp_path, SDD(states=StateSource(source="student", steps=3)), conditioning), formula)


@pytest.mark.parametrize(("variant", "scores"), [("model", "student"), ("model", "target"), ("noise", "student")])
@pytest.mark.parametrize(("conditioning", "prior"), [("class", 0.5), ("text", 0.5), ("dit", 0.5), ("dit", 0.0)])
def test_concept_ablation(conditioning: Conditioning, variant: Any, scores: Any, prior: float, tmp_path: Path) -> None:
    """eps(c_a) of the model or of the target, or the true noise; plus lambda |eps(c_a) - noise|^2."""

    def formula(model: Any, target: Any, x: Tensor, t: Tensor, c: Condition, anchor: Any, noise: Any, null: Any) -> Any:
        at_anchor = model.predict(x, t, anchor)
        aims = {"student": at_anchor.detach(), "target": target.predict(x, t, anchor).detach()}
        wanted = noise if variant == "noise" else aims[scores]
        return square(model.predict(x, t, c) - wanted) + prior * square(at_anchor - noise)

    objective = ConceptAblation(variant=variant, scores=scores, prior=prior, states=AnchorStates(steps=2))
    check(bench(tmp_path, objective, conditioning), formula)


def test_concept_ablation_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    for wrong in ({"prior": -1.0}, {"variant": "noise", "scores": "target"}):
        with pytest.raises(ValueError, match=next(iter(reversed(wrong)))):
            ConceptAblation(**wrong)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"Type data\.concepts"):
        Bench(tmp_path, ConceptAblation(states=AnchorStates(steps=2)), "class", "retain")


@pytest.mark.parametrize("conditioning", ALL)
def test_random_label_at_the_anchor(conditioning: Conditioning, tmp_path: Path) -> None:
    """eps(c_a) of the model as it is, on the forget images."""

    def formula(model: Any, target: Any, x: Tensor, t: Tensor, c: Condition, anchor: Any, noise: Any, null: Any) -> Any:
        return square(model.predict(x, t, c) - model.predict(x, t, anchor).detach())

    check(bench(tmp_path, RandomLabel(), conditioning), formula)


def test_random_labels_are_those_of_retain_items_and_new_at_each_step(tmp_path: Path) -> None:
    """A class drawn from the retain items, which are of all classes but the forgotten one; no anchor is asked for."""
    own = bench(tmp_path, RandomLabel(instead="random"), "dit")
    kept = own.splits["retain"].dataset.batch(own.splits["retain"].ids)["class"]
    drawn = []
    for step in range(2):
        context = own.context(step)
        found = own.objective.states(own.model, own.batch(), context)  # type: ignore[attr-defined]
        with torch.no_grad():
            score = own.model.predict(found.x, found.t, found.condition)
            each = {
                int(number): square(score - own.model.predict(found.x, found.t, Condition(classes=number.expand(8))))
                for number in kept.unique()
            }
            values = own.values(step=step).values
        for row in range(8):
            (number,) = [n for n, wanted in each.items() if abs(float(wanted[row] - values[row])) < 1e-12]
            drawn.append(number)
    assert 3 not in drawn and len(set(drawn)) > 2 and drawn[:8] != drawn[8:]
    with pytest.raises(RecipeError, match=r"Type data\.concepts"):
        Bench(tmp_path, RandomLabel(), "class", "retain")
    Bench(tmp_path, RandomLabel(instead="random"), "class", "retain")


@pytest.mark.parametrize("source", ["data", "generated", "noise"])
@pytest.mark.parametrize("conditioning", ALL)
def test_denoising_ascent(conditioning: Conditioning, source: Source, tmp_path: Path) -> None:
    """Minus |eps(c_f) - noise|^2."""

    def formula(model: Any, target: Any, x: Tensor, t: Tensor, c: Condition, anchor: Any, noise: Any, null: Any) -> Any:
        return -square(model.predict(x, t, c) - noise)

    own = bench(tmp_path, DenoisingAscent(states=StateSource(source=source, steps=3)), conditioning)
    check(own, formula)
    torch.testing.assert_close(own.values().diagnostics["denoising_loss"], -own.values().values)


def test_gradient_ascent_differs_from_it_only_where_conditions_are_dropped(tmp_path: Path) -> None:
    """The training loss drops a share of the conditions; the draws of t and noise are the same."""
    always, free = (bench(tmp_path, each, "class") for each in (DenoisingAscent(), GradientAscent()))
    free.model.settings.drop = 0.0
    torch.testing.assert_close(free.values().values, always.values().values)
    torch.testing.assert_close(free.values().diagnostics["training_loss"], -free.values().values)
    free.model.settings.drop = 0.6
    changed = (free.values().values - always.values().values).abs() > 1e-9
    assert 0 < changed.sum() < 8
    with pytest.raises(RecipeError, match=r"no likelihood whose dimensions"):
        GradientAscent(reduction="sum").attach(free.model)


@pytest.mark.parametrize("source", ["data", "generated", "trajectory"])
@pytest.mark.parametrize("conditioning", ALL)
def test_score_preservation(conditioning: Conditioning, source: Source, tmp_path: Path) -> None:
    """eps_0(c_r) of the target; at the target itself both value and gradient are 0."""

    def formula(model: Any, target: Any, x: Tensor, t: Tensor, c: Condition, anchor: Any, noise: Any, null: Any) -> Any:
        return square(model.predict(x, t, c) - target.predict(x, t, c).detach())

    own = Bench(tmp_path, ScorePreservation(states=StateSource(source=source, steps=3)), conditioning, "retain")
    own.values().values.sum().backward()
    assert own.values().values.max() < 1e-25
    assert max(p.grad.abs().max() for p in own.model.parameters() if p.grad is not None) < 1e-12
    moved(own.model)
    values = own.values(slice(0, 8)).values
    found = own.objective.states(own.model, own.batch(slice(0, 8)), own.context())  # type: ignore[attr-defined]
    torch.testing.assert_close(values, formula(own.model, own.target, found.x, found.t, found.condition, *[None] * 3))
    assert values.min() > 1e-6


@pytest.mark.parametrize("term", [ESD, SDD, ConceptAblation, RandomLabel, DenoisingAscent, ScorePreservation])
def test_a_source_that_a_term_does_not_take_is_refused(term: type[NoisyStateObjective]) -> None:
    others = [source for source in get_args(Source) if source not in term.sources]
    for source in others:
        with pytest.raises(ValueError, match=r"states\.source"):
            term(states=StateSource(source=source))
    assert others
