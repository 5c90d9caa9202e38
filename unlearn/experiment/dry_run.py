"""The dry run of ``--check``: everything is built, one step is taken, nothing is kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback

from unlearn.config.schema import Recipe
from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.data.base import Split
from unlearn.models.base import Wrapper
from unlearn.training.build import edited, guarded
from unlearn.training.fit import fit, peak_memory
from unlearn.training.module import UnlearningModule


def one_step(
    recipe: Recipe, module: UnlearningModule, splits: Mapping[str, Split], scope: str, callbacks: Sequence[Callback]
) -> str:
    """Take one step in a temporary folder; return sizes, scope, time and memory as text."""
    if recipe.guard is not None:
        guarded(recipe.guard, module.model, splits)
    trainer = replace(recipe.trainer, devices=1, tensorboard=False, wandb=None)
    with tempfile.TemporaryDirectory() as folder:
        seconds = fit(module, trainer, Path(folder), "checking", callbacks)
    steps = getattr(recipe.edit, "optim", recipe.optim).steps
    return sound(
        recipe,
        splits,
        f"scope     {scope}",
        f"one step  {seconds:.2f} s with set-up, on an untrained model; the recipe takes {steps} at most",
        f"memory    {peak_memory() / 2**20:,.0f} MiB at the peak so far",
    )


def at_once(recipe: Recipe, model: Wrapper, splits: Mapping[str, Split]) -> str:
    """Apply an edit that trains nothing, and a guard, to an untrained model; return sizes and time as text."""
    began = time.monotonic()
    if recipe.edit is not None:
        model = edited(recipe.edit, model, _no_training, splits)
    if recipe.guard is not None:
        guarded(recipe.guard, model, splits)
    return sound(
        recipe,
        splits,
        f"at once   {time.monotonic() - began:.2f} s, on an untrained model",
        f"memory    {peak_memory() / 2**20:,.0f} MiB at the peak so far",
    )


def _no_training(model: Any, split: str, optim: Optim) -> Any:
    """Refuse to train for an edit whose type does not say that it trains."""
    raise RecipeError("The edit trains a copy of the model, and its class does not say so: write Edit[Trains].")


def sound(recipe: Recipe, splits: Mapping[str, Split], *lines: str) -> str:
    """Return the answer of ``--check``: recipe, data and method, then ``lines``, then the verdict."""
    groups = {"forget": recipe.forget, "retain": recipe.retain}
    terms = [f"{group}: {name} (weight {term.weight:g})" for group in groups for name, term in groups[group].items()]
    by_steps = f"terms     {', '.join(terms)}; combined by {type(recipe.combine).__name__}"
    found = [
        f"recipe    {recipe.name}  ({recipe.hash[:12]})",
        f"data      {', '.join(f'{len(split):,} {name}' for name, split in splits.items())}",
        *([f"edit      {type(recipe.edit).__name__}"] if recipe.edit else []),
        *([by_steps] if recipe.forget else []),
        *([f"guard     {type(recipe.guard).__name__}"] if recipe.guard else []),
        *lines,
        "The recipe is sound.",
    ]
    return "\n".join(found)
