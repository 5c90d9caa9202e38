"""Runs a recipe's evaluators over all subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, Findings, Run
from unlearn.fit import device_for
from unlearn.randomness import Randomness
from unlearn.schema import Recipe


@torch.no_grad()
def evaluate(
    recipe: Recipe, models: Mapping[str, Callable[[], Any]], splits: Mapping[str, Split], run: Run, seed: int
) -> Findings:
    """Measure every subject with every evaluator; in single precision, on every rank."""
    device = device_for(recipe.trainer)
    subjects = {name: load().eval().to(device=device, dtype=torch.float32) for name, load in models.items()}
    findings = Findings()
    cache: dict[Any, Tensor] = {}
    for name, evaluator in recipe.evaluate.items():
        evaluation = Evaluation(subjects, splits, Randomness(seed, f"evaluate/{name}"), device, run, seed, cache)
        found = evaluator(evaluation)
        findings.records.extend(found.records)
        findings.pictures.extend(found.pictures)
        findings.items.extend(found.items)
    return findings
