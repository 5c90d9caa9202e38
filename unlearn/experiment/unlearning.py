"""Runs the unlearning itself: gradient steps or a closed-form edit, then an optional guard."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback
from safetensors.torch import save_file
from torch import nn
from typing_extensions import override

from unlearn.config.schema import Recipe
from unlearn.core.distributed import rank
from unlearn.core.errors import Diverged, UnlearnError, some
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.records import Record
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Split
from unlearn.evaluators.base import RunFacts
from unlearn.evaluators.subjects import contents
from unlearn.experiment.evaluation import measured
from unlearn.experiment.inputs import RunInputs
from unlearn.experiment.outcome import Outcome
from unlearn.experiment.run_dir import RunDir
from unlearn.models.base import not_finite
from unlearn.objectives.edits.base import Edit
from unlearn.training.build import edited, guarded, recipe_module, training_module
from unlearn.training.fit import device_for, fit, peak_memory
from unlearn.training.masks import entry_masks, scope_lines
from unlearn.training.model_selection import ModelSelection
from unlearn.training.module import UnlearningModule


@dataclass(frozen=True)
class _Steps:
    """The result of an edit or of gradient steps.

    Args:
        model: the unlearned model.
        number: of optimizer steps taken.
        seconds: of the steps (``unlearning``) and of the measurements between them (``selection``).
        states: the objectives' last states.
        networks: networks that were trained with the model and are kept, by phase name.
    """

    model: Any
    number: int
    seconds: dict[str, float]
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: Mapping[str, nn.Module] = field(default_factory=dict)


def unlearn(
    recipe: Recipe, inputs: RunInputs, seed: int, run_dir: RunDir, callbacks: Sequence[Callback] = ()
) -> Outcome:
    """Unlearn as the recipe says; an unlearning that was interrupted goes on where it stood.

    Every stored model is back on the CPU afterwards, and the unlearned one has the target's float types.
    ``callbacks`` are called in all steps, before the others.
    """
    compared = {name: stored for name, stored in inputs.models.items() if name in ("target", "teacher")}
    if inputs.start is not None:
        compared["start"] = inputs.start
    frozen = {name: contents(stored.shared()) for name, stored in compared.items()}
    if recipe.edit is not None:
        steps = _edit(recipe, recipe.edit, inputs, seed, run_dir, callbacks)
    elif recipe.forget:
        steps = _train(recipe, inputs, seed, run_dir, callbacks)
    else:
        steps = _Steps(inputs.begun.copy(), 0, {"unlearning": 0.0, "selection": 0.0})
    inputs.release()
    if changed := [name for name, before in frozen.items() if contents(compared[name].shared()) != before]:
        raise UnlearnError(
            f"The steps changed the {changed[0]} model, which every value is compared with; it must stay as it is. "
            "Let the objective or edit work on a copy (copy.deepcopy)."
        )
    model = guarded(recipe.guard, steps.model, inputs.splits) if recipe.guard else steps.model
    facts = RunFacts(
        steps=steps.number,
        seconds=steps.seconds["unlearning"],
        target_seconds=inputs.target.seconds,
        target_origin=inputs.target.origin,
        peak_memory=peak_memory(),
        state=steps.states,
        networks=steps.networks,
    )
    # trainer.precision=64-true takes the steps in a wider type than the tensors' own
    inputs.begun.cast_back(model)
    model.round_as_saved()
    if broken := not_finite(model.state_dict()):
        raise Diverged(
            f"The unlearned model holds weights that are not finite in the type that they are saved in, in "
            f"{some(broken)}, so it was not saved. Type a smaller optim.lr, or optim.clip=1."
        )
    return Outcome(model, facts, steps.seconds)


def _train(recipe: Recipe, inputs: RunInputs, seed: int, run_dir: RunDir, callbacks: Sequence[Callback]) -> _Steps:
    """Take the steps of the recipe's losses."""
    target = ReferenceModel(inputs.begun.shared)
    teacher = ReferenceModel(inputs.teacher.shared) if inputs.teacher else None
    module = recipe_module(recipe, inputs.begun.copy(), inputs.splits, seed, target, teacher)
    if recipe.guard is not None:
        guarded(recipe.guard, module.model, inputs.splits)  # one that does not fit is refused before the first step
    run_dir.say(scope_lines(module))
    original = ReferenceModel(inputs.target.shared) if inputs.start else target
    selections = _model_selection(recipe, inputs, original, seed, run_dir.say)
    callbacks = [*callbacks, *entry_masks(recipe.scope, run_dir.say), *selections]
    whole = fit(module, recipe.trainer, run_dir.folder, "unlearning", callbacks)
    for each in selections:
        each.apply(module)
    selection = sum(each.seconds for each in selections)
    recipe.scope.detach(module.model, run_dir.folder)
    seconds = {"unlearning": whole - selection, "selection": selection}
    return _Steps(module.model, module.step_count, seconds, module.states, _networks(module, run_dir.folder))


def _networks(module: UnlearningModule, folder: Path) -> dict[str, nn.Module]:
    """Return the networks trained with the model that are kept in a file of their own (a key), and write them."""
    found = {}
    for phase in module.phases:
        if phase.network is not None and phase.file:
            found[phase.name] = phase.network
            if rank() == 0:
                state = {key: value.detach().cpu().contiguous() for key, value in phase.network.state_dict().items()}
                save_file(state, folder / phase.file)
    return found


def _edit(
    recipe: Recipe, edit: Edit[Any], inputs: RunInputs, seed: int, run_dir: RunDir, callbacks: Sequence[Callback]
) -> _Steps:
    """Apply an edit, which may ask for the model trained further on a split."""
    began = time.monotonic()
    steps = 0

    def train(model: Any, split: str, optim: Optim) -> Any:
        nonlocal steps
        further = copy.deepcopy(model).requires_grad_(True)
        module = training_module(further, optim, inputs.splits[split], seed)
        fit(module, recipe.trainer, run_dir.folder / f"trained-on-{split}", f"training on {split}", callbacks)
        steps += module.step_count
        return further

    with _log_messages_to(run_dir.say):
        model = edited(edit, inputs.begun.copy(), train, inputs.splits)
    return _Steps(model, steps, {"unlearning": time.monotonic() - began, "selection": 0.0})


class _MessageHandler(logging.Handler):
    """Hands the text of each log record to a function."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextmanager
def _log_messages_to(say: Callable[[str], None]) -> Iterator[None]:
    """Hand what the package logs while the body runs to ``say``: an edit's findings and warnings."""
    logger, handler = logging.getLogger("unlearn"), _MessageHandler(say)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Subjects(dict[str, Any]):
    """Subjects to measure; the target can be asked for where an evaluator compares with it."""

    def __init__(self, target: ReferenceModel, measured: Mapping[str, Any]) -> None:
        super().__init__(measured)
        self._target = target

    def __missing__(self, subject: str) -> Any:
        if subject != "target":
            raise KeyError(subject)
        return self._target()


def _model_selection(
    recipe: Recipe, inputs: RunInputs, target: ReferenceModel, seed: int, say: Callable[[str], None]
) -> list[ModelSelection]:
    """Return the callback that keeps the best weights, judged on the half of forget that is not reported."""
    select = recipe.select
    if select is None:
        return []
    evaluator = {select.evaluator: recipe.evaluate[select.evaluator]}
    splits = {**inputs.splits, "forget": inputs.splits["forget"].halves()[0]}
    device = device_for(recipe.trainer)

    def measure(models: Mapping[str, Any], splits: Mapping[str, Split]) -> list[Record]:
        homes = {name: next(model.parameters()).device for name, model in models.items()}
        placed = _Subjects(target, {name: model.eval().to(device) for name, model in models.items()})
        records = measured(evaluator, placed, splits, Randomness(seed, "select"), device).records
        for name, home in homes.items():
            models[name].to(home)  # a frozen model that the steps do not need leaves the device again
        return records

    compared = {select.limit.minus if select.limit else None, "retrained" if select.aim == "retrained" else None}
    known: dict[str, Callable[[], Any]] = {"target": target}
    if inputs.retrained is not None:
        known["retrained"] = inputs.retrained.shared
    return [ModelSelection(select, measure, splits, {name: known[name] for name in known if name in compared}, say)]
