"""What ``--check`` answers: everything is built, one step is taken, nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unlearn.data.base import Split
from unlearn.fit import Prepare, fit, peak_memory
from unlearn.module import UnlearningModule
from unlearn.schema import Recipe


def one_step(
    recipe: Recipe, module: UnlearningModule, splits: Mapping[str, Split], scope: str, prepare: Prepare | None
) -> str:
    """Take one step in a folder that is thrown away; return sizes, scope, time and memory as text."""
    trainer = replace(recipe.trainer, devices=1, tensorboard=False, wandb=None)
    with tempfile.TemporaryDirectory() as folder:
        seconds = fit(module, trainer, Path(folder), "checking", prepare)
    steps = getattr(recipe.edit, "optim", recipe.optim).steps
    lines = [
        *headings(recipe, splits),
        f"scope     {scope}",
        f"one step  {seconds:.2f} s with set-up, on an untrained model; the recipe takes {steps} at most",
        f"memory    {peak_memory() / 2**20:,.0f} MiB at the peak so far",
        "The recipe is sound.",
    ]
    return "\n".join(lines)


def headings(recipe: Recipe, splits: Mapping[str, Split]) -> list[str]:
    """Return the lines that name the recipe, its data, and what is done."""
    groups = {"forget": recipe.forget, "retain": recipe.retain}
    terms = [f"{group}: {name} (weight {term.weight:g})" for group in groups for name, term in groups[group].items()]
    by_steps = f"terms     {', '.join(terms)}; combined by {type(recipe.combine).__name__}"
    return [
        f"recipe    {recipe.name}  ({recipe.hash[:12]})",
        f"data      {', '.join(f'{len(split):,} {name}' for name, split in splits.items())}",
        f"edit      {type(recipe.edit).__name__}" if recipe.edit else by_steps,
    ]
