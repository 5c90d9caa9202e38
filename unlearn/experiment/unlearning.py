"""How a model is changed: step by step on the recipe's losses, or by an edit; and what stands around it then."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from safetensors.torch import save_file
from torch import nn

from unlearn.config.schema import Recipe
from unlearn.core.distributed import rank
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.records import Record
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Split
from unlearn.experiment.evaluation import measured
from unlearn.experiment.inputs import RunInputs
from unlearn.experiment.run_dir import RunDir
from unlearn.models.base import Wrapper
from unlearn.objectives.edits.base import Edit
from unlearn.training.build import build_module, prepare_masks, scope_lines, training_module
from unlearn.training.fit import device_for, fit
from unlearn.training.model_selection import KeepBest
from unlearn.training.module import UnlearningModule


@dataclass(frozen=True)
class Unlearned:
    """What a change leaves.

    Args:
        student: the unlearned model.
        target: loads the model as it was.
        steps: optimiser steps taken.
        seconds: of the steps, and of the measurements between them.
        states: the objectives' last states.
        networks: what was trained beside the model, by its name.
    """

    student: Any
    target: ReferenceModel
    steps: int
    seconds: dict[str, float]
    states: Mapping[str, Mapping[str, Any]]
    networks: Mapping[str, nn.Module] = field(default_factory=dict)


def change(recipe: Recipe, materials: RunInputs, seed: int, place: RunDir) -> Unlearned:
    """Change the target as the recipe says; a change that was cut off goes on where it stood."""
    target = ReferenceModel(materials.load_target)
    if recipe.edit is not None:
        changed = _edit(recipe, recipe.edit, materials, target, seed, place)
    elif recipe.forget:
        changed = _train(recipe, materials, target, seed, place)
    else:
        changed = Unlearned(materials.load_target(), target, 0, {"unlearning": 0.0, "selection": 0.0}, {})
    if recipe.guard is None:
        return changed
    return replace(changed, student=recipe.guard(changed.student, materials.splits))


def _train(recipe: Recipe, materials: RunInputs, target: ReferenceModel, seed: int, place: RunDir) -> Unlearned:
    """Take the steps of the recipe's losses."""
    teacher = ReferenceModel(materials.load_teacher) if materials.load_teacher else None
    module = build_module(recipe, materials.load_target(), materials.splits, seed, target, teacher)
    if recipe.guard is not None:
        recipe.guard(module.model, materials.splits)  # one that does not fit is refused before the first step
    place.say(scope_lines(module))
    prepare, beside = prepare_masks(recipe, place.say), _keep_best(recipe, materials, target, seed, place.say)
    whole = fit(module, recipe.trainer, place.folder, "unlearning", prepare, beside)
    selection = sum(callback.seconds for callback in beside)
    recipe.scope.detach(module.model, place.folder)
    seconds = {"unlearning": whole - selection, "selection": selection}
    return Unlearned(module.model, target, module.step_count, seconds, module.states, _networks(module, place))


def _networks(module: UnlearningModule, place: RunDir) -> dict[str, nn.Module]:
    """Return what was trained beside the model; write what asks for it, apart from the model."""
    found = {}
    for phase in module.phases:
        if phase.network is not None:
            found[phase.name] = phase.network
            if phase.file and rank() == 0:
                state = {key: value.detach().cpu().contiguous() for key, value in phase.network.state_dict().items()}
                save_file(state, place.folder / phase.file)
    return found


def _edit(
    recipe: Recipe, edit: Edit, materials: RunInputs, target: ReferenceModel, seed: int, place: RunDir
) -> Unlearned:
    """Apply an edit, which may ask for the model trained further on a split."""
    began = time.monotonic()
    steps = 0

    def train(model: Wrapper, split: str, optim: Optim) -> Wrapper:
        nonlocal steps
        further = copy.deepcopy(model).requires_grad_(True)
        module = training_module(further, optim, materials.splits[split], seed)
        fit(module, recipe.trainer, place.folder / f"trained-on-{split}", f"training on {split}")
        steps += module.step_count
        return further

    with _heard(place.say):
        student = edit(materials.load_target(), train, materials.splits)
    return Unlearned(student, target, steps, {"unlearning": time.monotonic() - began, "selection": 0.0}, {})


@contextmanager
def _heard(say: Callable[[str], None]) -> Iterator[None]:
    """Hand the notes that the package logs while the body runs to ``say``: what an edit found, and its warnings."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger, handler = logging.getLogger("unlearn"), Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _keep_best(
    recipe: Recipe, materials: RunInputs, target: ReferenceModel, seed: int, say: Callable[[str], None]
) -> list[KeepBest]:
    """Return what keeps the best weights, judged on the half of forget that the figures do not show."""
    select = recipe.select
    if select is None:
        return []
    evaluator = {select.evaluator: recipe.evaluate[select.evaluator]}
    splits = {**materials.splits, "forget": materials.splits["forget"].halves()[0]}

    def measure(models: Mapping[str, Any], splits: Mapping[str, Split]) -> list[Record]:
        device = device_for(recipe.trainer)
        placed = {name: model.eval().to(device) for name, model in models.items()}
        return measured(evaluator, placed, splits, Randomness(seed, "select"), device).records

    asked = {select.limit.minus if select.limit else None, "retrained" if select.aim == "retrained" else None}
    known: dict[str, Callable[[], Any] | None] = {"target": target, "retrained": materials.load_retrained}
    fixed = {name: load for name, load in known.items() if name in asked and load is not None}
    return [KeepBest(select, measure, splits, fixed, say)]
