"""The answer of ``--check`` for a given model: its size, its trainable parameters, and the memory of a run."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import ceil

from torch import nn

from unlearn.config.compatibility import capabilities_of
from unlearn.config.schema import Recipe
from unlearn.core.optim import Optim
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Split
from unlearn.models.base import MetaModel
from unlearn.objectives.base import ParameterObjective
from unlearn.objectives.surgery import GRU
from unlearn.training.build import recipe_module
from unlearn.training.gradients import BUCKET_BYTES, IN_FLIGHT
from unlearn.training.masks import scope_lines
from unlearn.training.module import UnlearningModule
from unlearn.training.phase import Phase

MOMENTS = {"adam": 2, "adamw": 2}
"""Numbers that an optimizer keeps per trained weight."""


def estimated(recipe: Recipe, meta_model: MetaModel, splits: Mapping[str, Split]) -> list[str]:
    """Return sizes, scope and memory as lines of text; no weight is read and no step is taken."""
    single = replace(recipe, trainer=replace(recipe.trainer, devices=1))
    load = partial(copy.deepcopy, meta_model.model)
    module = recipe_module(single, load(), splits, recipe.seeds[0], ReferenceModel(load))
    step = of_a_step(recipe, meta_model, module)
    measuring = nbytes(dict(meta_model.model.named_parameters())) + _activations(recipe, meta_model, module)
    return [
        f"model     {recipe.model.pretrained}: {count(meta_model.model):,} parameters, built without its weights",
        f"scope     {scope_lines(module)}",
        f"memory    {gib(sum(step.values()))} for a step on each device, estimated:",
        *(f"  {name:<40} {gib(amount):>12}" for name, amount in step.items()),
        f"  and then {gib(measuring)} to measure one model at a time, in its own precision, at as many items",
        f"  activations: {meta_model.estimate}",
    ]


def of_a_step(recipe: Recipe, meta_model: MetaModel, module: UnlearningModule) -> dict[str, int]:
    """Return the bytes of a step by what they hold; for an edit without steps, those of the edit.

    The gradient is kept once; a second time where the two groups' gradients are kept apart (a combination other than
    the sum, or the sum's conflict cosine under accumulation or on several devices); once more for GRU's average; and
    once per retain sample for a combination of per-sample gradients.
    """
    model = nbytes(dict(module.model.named_parameters()))
    if not recipe.forget and "training_loss" not in capabilities_of(type(recipe.edit)):
        return {"weights, and a copy that is changed": 2 * model}
    moving = model if recipe.edit else nbytes(module.primary.parameters)
    optim: Optim = getattr(recipe.edit, "optim", recipe.optim)
    groups = module.primary.groups
    copies = 1
    if {"forget", "retain"} <= set(groups):
        copies += recipe.combine.separate or optim.accumulate > 1 or recipe.trainer.devices > 1
        copies += isinstance(recipe.combine, GRU)
        copies += optim.batch if recipe.combine.per_sample else 0
    held = _moments(optim) + (optim.ema is not None)
    auxiliary = [phase for phase in module.phases if phase.network is not None]
    step = {
        "weights": model,
        f"gradients, {copies} x what is trained": copies * moving,
        f"{optim.name}, {held} x what is trained": held * moving,
        **{f"{phase.name}, which is trained with it": _auxiliary(phase) for phase in auxiliary},
        "kept of the target, at most": _reference(recipe, meta_model, module, model),
        f"activations of {' or '.join(f'{n} {group}' for group, n in _micro_batch(recipe, module).items())}": (
            _activations(recipe, meta_model, module)
        ),
    }
    if recipe.trainer.devices > 1:
        step["gradient buckets, at most"] = _buckets(module)
    return step


def _micro_batch(recipe: Recipe, module: UnlearningModule) -> dict[str, int]:
    """Return the items of each group in one micro-batch of one device."""
    optim: Optim = getattr(recipe.edit, "optim", recipe.optim)
    sizes = {group: optim.batch for group in module.primary.groups or ("forget",)}
    if optim.forget_batch is not None and "forget" in sizes:
        sizes["forget"] = optim.forget_batch
    parts = recipe.trainer.devices * optim.accumulate
    return {group: ceil(min(size, len(module.common.splits[group])) / parts) for group, size in sizes.items()}


def _activations(recipe: Recipe, meta_model: MetaModel, module: UnlearningModule) -> int:
    """Return the bytes of the activations of the largest micro-batch."""
    sizes = _micro_batch(recipe, module).items()
    return max(meta_model.activations(module.common.splits[group], items) for group, items in sizes)


def _buckets(module: UnlearningModule) -> int:
    """Return the largest number of bytes of gradients that travel between devices at once."""
    largest = max((parameter.nbytes for parameter in module.primary.parameters.values()), default=0)
    return IN_FLIGHT * max(BUCKET_BYTES, largest)


def _moments(optim: Optim) -> int:
    """Return how many numbers an optimizer keeps per trained weight."""
    return MOMENTS.get(optim.name, int(optim.momentum > 0))


def _auxiliary(phase: Phase) -> int:
    """Return the bytes of an auxiliary network: weights, gradients and optimizer state."""
    network = 0 if phase.network is None else nbytes(dict(phase.network.named_parameters()))
    return network + (1 + _moments(phase.optim)) * nbytes(phase.parameters)


def _reference(recipe: Recipe, meta_model: MetaModel, module: UnlearningModule, model: int) -> int:
    """Return the bytes kept of the target: all of it, a copy of its last layer, or nothing (numbers on disk)."""
    terms = [term for _, _, term in module.primary.terms()]
    if recipe.edit or any(isinstance(term, ParameterObjective) for term in terms):
        return model
    asked = {capability for term in terms for capability in capabilities_of(type(term))}
    if "denoises" in asked:  # its scores, at states that differ from step to step
        return 0 if recipe.scope.is_adapter else model
    return meta_model.head if "continues" in asked else 0


def count(model: nn.Module) -> int:
    """Return the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def nbytes(parameters: Mapping[str, nn.Parameter]) -> int:
    """Return the bytes of parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())


def gib(amount: float) -> str:
    """Write bytes for people."""
    return f"{amount / 2**30:,.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:,.1f} MiB"
