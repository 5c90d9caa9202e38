"""Truths for every registered objective, combination and scope, found by the registry."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small import digits_splits, small_module
from unlearn.feed import Feed
from unlearn.job import check
from unlearn.models.scope import HeldEntries
from unlearn.objectives.base import Objective
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.phase import Losses
from unlearn.recipe import load
from unlearn.registry import names, resolve

SETTINGS: dict[str, dict[str, Any]] = {"debias": {"shares": {"3": 0.3}, "samples": 64}}
"""What an objective cannot do without."""

OBJECTIVES, COMBINATIONS, SCOPES = names("objective"), names("combination"), names("scope")


def objective(name: str, **settings: Any) -> Objective:
    found: Objective = resolve("objective", name)(**SETTINGS.get(name, {}), **settings)
    return found


def gradient_of(module: Any) -> dict[str, torch.Tensor]:
    """The gradient of one step, with the terms prepared as a run does it."""
    feed = Feed(module.splits, {"forget": 16, "retain": 16}, module.stream.child("order"))
    for group, name, term in module.primary.terms():
        term.prepare(module.model, module._context(f"{group}/{name}"))
        with torch.no_grad():
            term.before_step(module.model, module._context(f"{group}/{name}"))
    gradients = Losses(module.primary, module.model, feed[0], module._context).gradient({}, log=True)
    return dict(zip(module.primary.parameters, [g.clone() for g in gradients], strict=True))


def leave_the_target(module: Any) -> None:
    """At the target itself a distance to the target has no gradient."""
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter += 0.05


def as_forget(name: str, **settings: Any) -> Any:
    return small_module(forget={name: objective(name, **settings)}, retain={}, splits=digits_splits())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    module = as_forget(name)
    leave_the_target(module)
    gradients = gradient_of(module)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert [key for key, gradient in gradients.items() if not gradient.any()] == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_weight_scales_the_gradient(name: str) -> None:
    once, thrice, never = (gradient_of(as_forget(name, weight=weight)) for weight in (1.0, 3.0, 0.0))
    assert all(torch.allclose(3 * once[key], thrice[key], atol=1e-9) for key in once)
    assert not any(gradient.any() for gradient in never.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_negative_weight_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="weight"):
        objective(name, weight=-1.0)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_with_every_combination_and_scope(name: str, combine: str, scope: str) -> None:
    """One step moves what the scope allows, and nothing else."""
    chosen = resolve("scope", scope)()
    module = small_module(
        forget={name: objective(name)},
        retain={"training_loss": TrainingLoss()},
        combine=resolve("combination", combine)(),
        names=chosen.select(small_module({}, {}).model),
    )
    leave_the_target(module)
    before = {key: value.detach().clone() for key, value in module.model.named_parameters()}
    gradients = gradient_of(module)
    masks = chosen.masks(gradients)
    held = HeldEntries(module.primary.parameters, masks)
    with torch.no_grad():
        for key, parameter in module.primary.parameters.items():
            parameter -= 1e-3 * gradients[key]
    held.restore()
    moved = {key for key, value in module.model.named_parameters() if not torch.equal(value, before[key])}
    assert moved and moved <= set(module.primary.parameters)
    for key, mask in masks.items():
        assert torch.equal(module.primary.parameters[key][~mask], before[key][~mask])


RECIPES = sorted(
    str(path.relative_to(root).with_suffix(""))
    for root in [Path(__file__).resolve().parent.parent / "recipes"]
    for path in root.rglob("*.yaml")
)


def test_no_recipe_is_lost_unseen() -> None:
    assert len(RECIPES) == 6  # quickstart and five for flows


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_sound(name: str) -> None:
    """It loads, says what it is, loads again from what it resolves to, and takes a step."""
    recipe = load(name)
    assert recipe.about.title and recipe.about.needs
    assert load(recipe.tree).hash == recipe.hash
    assert "The recipe is sound." in check(recipe)
