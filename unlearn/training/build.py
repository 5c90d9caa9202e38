"""Where a model to be trained becomes a training module: of a recipe's terms, of its own loss, or of a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from unlearn.config.schema import Pretrain, Recipe
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import AdapterDisabledReference, ReferenceModel
from unlearn.data.base import Split
from unlearn.models.base import Wrapper
from unlearn.models.scope import HeldEntries, scope_table
from unlearn.objectives.base import Objective
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.training.auxiliary_networks import auxiliary_networks
from unlearn.training.dataloader import StepLoader
from unlearn.training.module import UnlearningModule
from unlearn.training.phase import Phase


def build_module(
    recipe: Recipe,
    model: nn.Module,
    splits: dict[str, Split],
    seed: int,
    target: ReferenceModel,
    distilled_from: ReferenceModel | None = None,
) -> UnlearningModule:
    """Return the module that a recipe describes, around a model that moves.

    Args:
        recipe: what to do.
        model: that moves; it begins as the target.
        splits: the data by split name.
        seed: of the run.
        target: the frozen target.
        distilled_from: the frozen model that the target was distilled from, where it was.
    """
    for term in (*recipe.forget.values(), *recipe.retain.values()):
        term.attach(model)
    recipe.scope.attach(model, Randomness(seed, "scope"))
    reference = AdapterDisabledReference(model, partial(recipe.scope.off, model)) if recipe.scope.is_adapter else target
    names = recipe.scope.select(model)
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in chosen}
    phase = Phase(parameters, {"forget": recipe.forget, "retain": recipe.retain}, recipe.optim, recipe.combine)
    phase.groups = {group: terms for group, terms in phase.groups.items() if terms}
    beside = auxiliary_networks(phase, model, distilled_from or reference, Randomness(seed, "companion"))
    every = recipe.trainer.log_every
    return UnlearningModule(model, [*beside, phase], splits, seed, reference, every, distilled_from)


def prepare_masks(recipe: Recipe, say: Callable[[str], None]) -> Callable[[UnlearningModule, StepLoader], None] | None:
    """Return what makes the masks of a scope that asks for the forget gradient, at the target's weights."""
    if not recipe.scope.needs_gradient:
        return None

    def prepare(module: UnlearningModule, feed: StepLoader) -> None:
        if not module.masks:
            passes = max(1, len(feed.splits["forget"]) // feed.sizes["forget"])
            batches = [feed[index] for index in range(min(passes, 50))]
            terms = {"training_loss": TrainingLoss()} if recipe.scope.by_training_loss else None
            gradients = module.forget_gradient(batches, terms)
            module.masks = recipe.scope.masks(gradients)
            say(scope_lines(module))
        module.held = HeldEntries(module.primary.parameters, module.masks)

    return prepare


def scope_lines(module: UnlearningModule) -> str:
    """Return the table of what may move, as text."""
    rows = scope_table(module.model, list(module.primary.parameters), module.masks)
    free, total = sum(row[1] for row in rows), sum(row[2] for row in rows)
    lines = [f"  {place:<40} {moving:>12,} of {all_:>12,}" for place, moving, all_ in rows if moving]
    return "\n".join((f"may move: {free:,} of {total:,} parameters", *lines))


def training_module(model: Wrapper, optim: Optim, split: Split, seed: int) -> UnlearningModule:
    """Return the module that trains a model by its own training loss, with the network that it is trained against."""
    phase = training_phase(model, optim)
    beside = auxiliary_networks(phase, model, lambda: model, Randomness(seed, "companion"))
    return UnlearningModule(model, [*beside, phase], {"retain": split}, seed)


def training_phase(model: Wrapper, optim: Optim) -> Phase:
    """Return the one phase that trains a model: its own training loss on all items."""
    moving = {name: model.get_parameter(name) for name in model.trainable()}
    return Phase(moving, {"retain": {"training_loss": TrainingLoss()}}, optim)


def distillation(
    model: Wrapper, teacher: ReferenceModel, by: Mapping[str, Objective], pretrain: Pretrain, split: Split
) -> UnlearningModule:
    """Return the module that trains a model, which begins as its teacher, by objectives on all items."""
    for term in by.values():
        term.attach(model)
    moving = {name: model.get_parameter(name) for name in model.trainable()}
    phase = Phase(moving, {"retain": dict(by)}, pretrain.optim)
    beside = auxiliary_networks(phase, model, teacher, Randomness(pretrain.seed, "companion"))
    return UnlearningModule(model, [*beside, phase], {"retain": split}, pretrain.seed, teacher)
