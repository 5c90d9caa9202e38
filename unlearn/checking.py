"""What ``--check`` answers: everything is built, one step is taken, nothing is kept."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from unlearn.fit import Prepare, fit, peak_memory
from unlearn.module import UnlearningModule
from unlearn.schema import Recipe


def one_step(recipe: Recipe, module: UnlearningModule, scope: str, prepare: Prepare | None) -> str:
    """Take one step in a folder that is thrown away; return sizes, scope, time and memory as text."""
    trainer = replace(recipe.trainer, devices=1, tensorboard=False, wandb=None)
    with tempfile.TemporaryDirectory() as folder:
        seconds = fit(module, trainer, Path(folder), "checking", prepare)
    splits = ", ".join(f"{len(split):,} {name}" for name, split in module.splits.items())
    terms = ", ".join(f"{group}: {name} (weight {term.weight:g})" for group, name, term in module.primary.terms())
    lines = [
        f"recipe    {recipe.name}  ({recipe.hash[:12]})",
        f"data      {splits}",
        f"terms     {terms}; combined by {type(recipe.combine).__name__}",
        f"scope     {scope}",
        f"one step  {seconds:.2f} s with set-up, on an untrained model; the recipe takes {recipe.optim.steps} at most",
        f"memory    {peak_memory() / 2**20:,.0f} MiB at the peak so far",
        "The recipe is sound.",
    ]
    return "\n".join(lines)
