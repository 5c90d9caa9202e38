"""The dry run of ``--check``: everything is built, a step is taken, every evaluator is called; nothing is kept."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from torch import nn
from typing_extensions import override

from unlearn.config.compatibility import capabilities_of
from unlearn.config.schema import Recipe
from unlearn.config.single_request import each_request
from unlearn.core.errors import NoGradient, RecipeError
from unlearn.data.base import Dataset, Split
from unlearn.experiment.inputs import RunInputs, gather_inputs, without_quantiles
from unlearn.experiment.memory_estimate import estimated, gib
from unlearn.experiment.outcome import Outcome
from unlearn.experiment.pretraining import find_or_build
from unlearn.experiment.run_dir import RunDir
from unlearn.experiment.trial import Trial, try_evaluators
from unlearn.experiment.unlearning import unlearn
from unlearn.models.base import ModelConfig
from unlearn.training.fit import peak_memory
from unlearn.training.module import STILL_STEPS

SMALL = 200 * 2**20
"""Weights of as many bytes are read; larger ones are left alone."""
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Endings of files of weights."""
ITEMS = (2, 16)
"""Least and most items of each split that the step is taken on."""
WEIGHTS = 32e6
"""Weights of the model times items: a step of a large model is taken on fewer."""
STEP = "a step"
"""The step among what was tried."""


def dry_run(recipe: Recipe, dataset: Dataset, splits: Mapping[str, Split]) -> str:
    """Try a recipe on a few items, and return what was found as text.

    A step is taken and every evaluator is called wherever the weights are at hand and small, or the recipe trains the
    model: then on the shipped or cached one, or else on an untrained one. What could not be tried is named.

    Args:
        recipe: with its evaluators.
        dataset: the data as the model reads it.
        splits: of a rehearsal, all checked.

    Raises:
        RecipeError: something is wrong with the recipe; an evaluator's message begins with its key.
    """
    recipe = next(iter(each_request(recipe)), recipe)  # the first of several
    trial = Trial()
    meta_model = recipe.model.meta_model(recipe.trainer.precision)
    lines = [] if meta_model is None else estimated(recipe, meta_model, splits)
    inputs = _inputs(recipe, dataset, trial)
    if inputs is None:
        return _report(recipe, splits, lines, trial)
    with tempfile.TemporaryDirectory() as folder:
        items = items_of(inputs.target.shared())
        outcome, said = _unlearnt(recipe, inputs, Path(folder), items)
        trial.tried.append(_deed(recipe))
        try_evaluators(recipe, inputs, outcome, trial)
    return _report(recipe, splits, [*lines, *said, *_measured(recipe, inputs, outcome, items)], trial)


class _Silent(RunDir):
    """A run directory whose messages are kept for the report."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.said: list[str] = []

    @override
    def say(self, text: str) -> None:
        self.said.append(f"scope     {text}" if text.startswith("trained:") else f"note      {text}")


def _inputs(recipe: Recipe, dataset: Dataset, trial: Trial) -> RunInputs | None:
    """Return the inputs of a run that trains nothing, None where weights that it needs are large or elsewhere."""
    given = {"model.pretrained": recipe.model.pretrained}
    if recipe.distil is not None:
        given["distil.pretrained"] = recipe.distil.pretrained
    for key, path in given.items():
        if path is not None and (reason := _out_of_reach(key, recipe.model, path)):
            trial.leave_out(_all(recipe), reason)
            return None
    recipe = replace(without_quantiles(recipe), model=recipe.model.fastest())
    if (path := recipe.model.retrained) is not None:
        try:
            reason = _out_of_reach("model.retrained", recipe.model, path)
        except RecipeError as error:
            if Path(expanduser(path)).is_absolute() or path.count("/") != 1:  # no id of the hub
                raise
            reason = str(error)
        if reason:
            trial.leave_out(["the retrained model"], reason)
            none = replace(recipe.pretrain, retrained=False)
            recipe = replace(recipe, model=replace(recipe.model, retrained=None), pretrain=none)
    inputs = gather_inputs(recipe, recipe.seeds[0], None, dataset, find_or_build)
    found = inputs.target.folder
    if found is not None and inputs.target.origin != "given" and _size(found) > SMALL:
        trial.leave_out(_all(recipe), f"its weights of {gib(_size(found))} are not read")
        return None
    return inputs


def _out_of_reach(key: str, config: ModelConfig, path: str) -> str:
    """Return why weights are not read, in words; empty where they are at hand and small."""
    try:
        folder = config.fetch(path, weights=False)
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from error
    size = _size(folder)
    if not size:
        return f"the weights of {path} are not here"
    return f"the weights of {path}, {gib(size)}, are not read" if size > SMALL else ""


def _size(folder: Path) -> int:
    """Return the bytes of the weights in a folder."""
    files = (path for path in folder.rglob("*") if path.suffix in ENDINGS and path.is_file())
    return sum(path.stat().st_size for path in files)


def _deed(recipe: Recipe) -> str:
    """Return what the recipe does to the model, as it is tried."""
    return STEP if _trains(recipe) else "the edit" if recipe.edit else "the guard"


def _all(recipe: Recipe) -> list[str]:
    """Return everything that a dry run tries."""
    return [_deed(recipe), *(f"evaluate.{name}" for name in recipe.evaluate)]


def _trains(recipe: Recipe) -> bool:
    return bool(recipe.forget) or "training_loss" in capabilities_of(type(recipe.edit))


class _OneStep(Callback):
    """Ends the steps after the first one that has a gradient; without any, the run's own check ends them."""

    @override
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.step_count > 0 and not any(module.still.values()):
            trainer.should_stop = True


def items_of(model: nn.Module) -> int:
    """Return how many items of each split a step is taken on."""
    least, most = ITEMS
    return max(least, min(most, int(WEIGHTS / max(1, sum(p.numel() for p in model.parameters())))))


def _unlearnt(recipe: Recipe, inputs: RunInputs, folder: Path, items: int) -> tuple[Outcome, list[str]]:
    """Unlearn in one step, on a few items of each split and on one device; return what was said, too.

    Raises:
        NoGradient: the gradient is exactly 0 where the run would end for it, also on as many items as the run takes.
    """
    optim = getattr(recipe.edit, "optim", recipe.optim)
    batch = max(items, optim.batch, optim.forget_batch or 0)
    for tried in sorted({items, batch}):
        run_dir = _Silent(folder / f"{tried}")
        try:
            return _steps(recipe, inputs, run_dir, tried), run_dir.said
        except NoGradient as error:
            refused = error  # by chance, where only some items have a gradient
    if inputs.target.origin == "untrained":
        raise NoGradient(f"{refused} (On an untrained model: the recipe's own is not trained yet.)")
    raise refused


def _steps(recipe: Recipe, inputs: RunInputs, run_dir: RunDir, items: int) -> Outcome:
    edit: Any = recipe.edit
    if hasattr(edit, "optim"):
        edit = replace(edit, optim=replace(edit.optim, steps=min(STILL_STEPS, edit.optim.steps)))
    short = replace(
        recipe,
        forget={name: term.smallest() for name, term in recipe.forget.items()},
        retain={name: term.smallest() for name, term in recipe.retain.items()},
        optim=replace(recipe.optim, steps=min(STILL_STEPS, recipe.optim.steps)),
        edit=edit,
        select=None,
        trainer=replace(recipe.trainer, devices=1, tensorboard=False, wandb=None),
    )
    few = replace(inputs, splits={name: split.few(items) for name, split in inputs.splits.items()})
    return unlearn(short, few, recipe.seeds[0], run_dir, [_OneStep()])


def _measured(recipe: Recipe, inputs: RunInputs, outcome: Outcome, items: int) -> list[str]:
    """Return time and memory of what was tried."""
    origin = inputs.target.origin
    where = "an untrained model" if origin == "untrained" else f"the {origin} model"
    tried_on = f"at most {items} items of each split, on {where}"
    seconds = outcome.seconds["unlearning"]
    steps = getattr(recipe.edit, "optim", recipe.optim).steps
    return [
        f"one step  {seconds:.2f} s with set-up, {tried_on}; the recipe takes {steps} at most"
        if _trains(recipe)
        else f"at once   {seconds:.2f} s, {tried_on}",
        f"memory    {peak_memory() / 2**20:,.0f} MiB at the peak so far",
    ]


def _report(recipe: Recipe, splits: Mapping[str, Split], lines: list[str], trial: Trial) -> str:
    """Return the answer of ``--check``: recipe, data and method, then ``lines``, then the verdict."""
    groups = {"forget": recipe.forget, "retain": recipe.retain}
    terms = [f"{group}: {name} (weight {term.weight:g})" for group in groups for name, term in groups[group].items()]
    by_steps = f"terms     {', '.join(terms)}; combined by {type(recipe.combine).__name__}"
    requests = recipe.requests
    several = [f"requests  {requests.count} {requests.over}; the first is tried"] if requests else []
    found = [
        f"recipe    {recipe.name}  ({recipe.hash[:12]})",
        f"data      {', '.join(f'{len(split):,} {name}' for name, split in splits.items())}",
        *several,
        *([f"edit      {type(recipe.edit).__name__}"] if recipe.edit else []),
        *([by_steps] if recipe.forget else []),
        *([f"guard     {type(recipe.guard).__name__}"] if recipe.guard else []),
        *lines,
        *trial.lines(),
    ]
    return "\n".join(found)
