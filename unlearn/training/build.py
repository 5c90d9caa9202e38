"""Builds the module that trains a model by a recipe's terms or by the model's own loss."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from unlearn.config.schema import Recipe
from unlearn.core.boundary import named, promised
from unlearn.core.errors import RecipeError, did_you_mean, shorten, some
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import AdapterDisabledReference, ReferenceModel
from unlearn.data.base import Split
from unlearn.models.base import Wrapper, not_finite
from unlearn.models.guards.base import Guard
from unlearn.models.scope import All, Scope
from unlearn.objectives.base import Objective
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.edits.base import Edit, Train
from unlearn.objectives.surgery import Combination, WeightedSum
from unlearn.training.auxiliary_networks import auxiliary_networks
from unlearn.training.module import UnlearningModule
from unlearn.training.phase import Phase


def build_module(
    model: nn.Module,
    splits: Mapping[str, Split],
    seed: int,
    *,
    optim: Optim,
    forget: Mapping[str, Objective[Any]] | None = None,
    retain: Mapping[str, Objective[Any]] | None = None,
    combine: Combination | None = None,
    scope: Scope | None = None,
    target: ReferenceModel | None = None,
    distilled_from: ReferenceModel | None = None,
    **settings: Any,
) -> UnlearningModule:
    """Return the module that trains a model, with the auxiliary networks of its terms.

    Args:
        model: the model to train; it starts as the target.
        splits: the data by split name.
        seed: the run's seed.
        optim: optimizer settings of the model.
        forget: terms on the forget split, by name.
        retain: terms on the retain split, by name.
        combine: combines the gradients of both groups; by default their sum.
        scope: selects the trained parameters; by default all.
        target: the frozen target, for the terms that compare with it. With an adapter it is not loaded: the model with
            the adapter off is the target.
        distilled_from: the frozen model that the target was distilled from, if it was.
        settings: further arguments of UnlearningModule: ``log_every``, ``remedy``.
    """
    scope = scope or All()
    groups = {group: dict(terms) for group, terms in (("forget", forget), ("retain", retain)) if terms}
    for terms in groups.values():
        for term in terms.values():
            term.attach(model)
    scope.attach(model, Randomness(seed, "scope"))
    reference = AdapterDisabledReference(model, partial(scope.off, model)) if scope.is_adapter else target
    chosen = _selected(scope, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in chosen}
    phase = Phase(parameters, groups, optim, combine or WeightedSum())
    teacher = distilled_from or reference or (lambda: model)
    # the name of a stream is part of its numbers: another one would draw other first weights
    beside = auxiliary_networks(phase, model, teacher, Randomness(seed, "companion"))
    return UnlearningModule(model, [*beside, phase], splits, seed, reference, distilled_from=distilled_from, **settings)


def _selected(scope: Scope, model: nn.Module) -> set[str]:
    """Return the parameters that a scope selects. Raises RecipeError where they are none of the model's."""
    who = named("scope", scope)
    found = scope.select(model)
    if not isinstance(found, list | tuple | set | dict) or not all(isinstance(name, str) for name in found):
        raise RecipeError(f"{who}: select returned {shorten(found)}; it must return a list of parameter names.")
    names = [name for name, _ in model.named_parameters()]
    if unknown := [name for name in found if name not in set(names)]:
        raise RecipeError(f"{who}: select returned {unknown[0]!r}. {did_you_mean(unknown[0], names)}")
    if not found:
        raise RecipeError(f"{who} selects no parameter, so nothing would be trained. Type scope=all.")
    return set(found)


def edited(edit: Edit[Any], model: Wrapper, train: Train, splits: Mapping[str, Split]) -> Wrapper:
    """Return the model that an edit makes. Raises RecipeError for something else, or weights that are not finite."""
    found: Wrapper = promised(edit(model, train, splits), Wrapper, named("edit", edit))
    if broken := not_finite(found.state_dict()):
        raise RecipeError(
            f"{named('edit', edit)} made weights that are not finite, in {some(broken)}; nothing was saved."
        )
    return found


def guarded(guard: Guard[Any], model: nn.Module, splits: Mapping[str, Split]) -> Wrapper:
    """Return a model within a guard. Raises RecipeError where the guard returns something else."""
    return promised(guard(model, splits), Wrapper, named("guard", guard))


def recipe_module(
    recipe: Recipe,
    model: nn.Module,
    splits: Mapping[str, Split],
    seed: int,
    target: ReferenceModel,
    distilled_from: ReferenceModel | None = None,
) -> UnlearningModule:
    """Return the module that a recipe describes; arguments as in ``build_module``."""
    return build_module(
        model,
        splits,
        seed,
        forget=recipe.forget,
        retain=recipe.retain,
        combine=recipe.combine,
        scope=recipe.scope,
        optim=recipe.optim,
        target=target,
        distilled_from=distilled_from,
        log_every=recipe.trainer.log_every,
    )


def training_module(model: Wrapper, optim: Optim, split: Split, seed: int, **settings: Any) -> UnlearningModule:
    """Return the module that trains a model by its own training loss."""
    terms = {"training_loss": TrainingLoss()}
    return build_module(model, {"retain": split}, seed, retain=terms, optim=optim, **settings)
