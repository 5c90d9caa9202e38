"""Runs a recipe's evaluators over all subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from unlearn.config.schema import Recipe
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Run
from unlearn.training.fit import device_for


def evaluate(
    recipe: Recipe, models: Mapping[str, Callable[[], Any]], splits: Mapping[str, Split], run: Run, seed: int
) -> EvaluationResult:
    """Measure every subject with every evaluator; in single precision, on every rank."""
    device = device_for(recipe.trainer)
    subjects = {name: load().eval().to(device=device, dtype=torch.float32) for name, load in models.items()}
    return measured(recipe.evaluate, subjects, splits, Randomness(seed, "evaluate"), device, run, seed)


@torch.no_grad()
def measured(
    evaluators: Mapping[str, Evaluator],
    subjects: Mapping[str, Any],
    splits: Mapping[str, Split],
    randomness: Randomness,
    device: torch.device,
    run: Run | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Run evaluators over models that stand on the device."""
    findings = EvaluationResult()
    cache: dict[Any, Any] = {}
    for name, evaluator in evaluators.items():
        stream = randomness.child(name)
        found = evaluator(Evaluation(subjects, splits, stream, device, run or Run(), seed, cache))
        findings.records.extend(found.records)
        findings.pictures.extend(found.pictures)
        findings.text_tables.extend(found.text_tables)
        findings.items.extend(found.items)
        findings.notes.extend(found.notes)
    return findings
