"""Runs a recipe's evaluators over all subjects, one model at a time on the device."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from unlearn.config import registry
from unlearn.config.schema import Recipe
from unlearn.core.randomness import Randomness
from unlearn.core.records import Picture, TextTable
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, RunFacts
from unlearn.evaluators.subjects import OneAtATime
from unlearn.training.fit import device_for

Shown = TypeVar("Shown", Picture, TextTable)


def evaluate(
    recipe: Recipe, models: Mapping[str, Callable[[], Any]], splits: Mapping[str, Split], run: RunFacts, seed: int
) -> EvaluationResult:
    """Measure every subject with every evaluator, on every rank.

    Args:
        recipe: with the evaluators.
        models: subject -> returns its model. Each is measured in its own precision.
        splits: the data by split name.
        run: facts that some evaluators report.
        seed: of the run.
    """
    device = device_for(recipe.trainer)
    subjects = OneAtATime(models, device)
    try:
        return measured(recipe.evaluate, subjects, splits, Randomness(seed, "evaluate"), device, run, seed)
    finally:
        subjects.release()


@torch.no_grad()
def measured(
    evaluators: Mapping[str, Evaluator],
    subjects: Mapping[str, Any],
    splits: Mapping[str, Split],
    randomness: Randomness,
    device: torch.device,
    run: RunFacts | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Run evaluators over models on the device; values that evaluators share are computed once.

    Everything that an evaluator returns carries its key in the recipe, so that two entries of one evaluator stay apart.
    """
    findings = EvaluationResult()
    cache: dict[Any, Any] = {}
    for name, evaluator in evaluators.items():
        stream = randomness.child(name)
        found = evaluator(Evaluation(subjects, splits, stream, device, run or RunFacts(), seed, cache, name))
        findings.records.extend(found.records)
        findings.pictures.extend(_named(picture, name, evaluator) for picture in found.pictures)
        findings.text_tables.extend(_named(table, name, evaluator) for table in found.text_tables)
        findings.items.extend({"evaluator": name, **row} for row in found.items)
        findings.notes.extend(found.notes)
    return findings


def _named(shown: Shown, key: str, evaluator: Evaluator) -> Shown:
    """Return a picture or table with the evaluator's key in name and title, unless the key is its registered name."""
    if registry.is_registered("evaluator", key) and registry.resolve("evaluator", key) is type(evaluator):
        return shown
    file_name = re.sub(r"[^\w.-]+", "_", f"{shown.name}_{key}")  # a key may be a dotted path with a colon
    return replace(shown, name=file_name, title=f"{shown.title} ({key})")
