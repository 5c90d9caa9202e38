"""Runs a recipe's evaluators over all subjects, one model at a time on the device."""

import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from unlearn.config import registry
from unlearn.config.schema import Recipe
from unlearn.core.boundary import described, named, promised, staying
from unlearn.core.distributed import world_size
from unlearn.core.randomness import Randomness
from unlearn.core.records import Picture, Record, TextTable
from unlearn.core.torch_settings import own_settings
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, RunFacts
from unlearn.evaluators.subjects import OneAtATime
from unlearn.training.fit import device_for

Shown = TypeVar("Shown", Picture, TextTable)
PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of every PNG file."""


def evaluate(
    recipe: Recipe, models: Mapping[str, Callable[[], Any]], splits: Mapping[str, Split], run: RunFacts, seed: int
) -> EvaluationResult:
    """Measure every subject with every evaluator, on every rank.

    An evaluator that raises an error costs its own figures only: it becomes a note, and its traceback is kept in
    ``failed``. Over several ranks it ends the run, as the others may be waiting for this one.

    Args:
        recipe: with the evaluators.
        models: subject -> returns its model. Each is measured in its own float types.
        splits: the data by split name.
        run: facts that some evaluators report.
        seed: of the run.
    """
    device = device_for(recipe.trainer)
    subjects = OneAtATime(models, device)
    randomness = Randomness(seed, "evaluate")
    whole = EvaluationResult()
    cache: dict[Any, Any] = {}
    spoilt = ""
    try:
        for name, evaluator in recipe.evaluate.items():
            try:
                if spoilt:
                    raise ModelChanged(f"not measured, as {spoilt}")
                with own_settings():
                    found = measured({name: evaluator}, subjects, splits, randomness, device, run, seed, cache)
                if changed := subjects.changed():
                    spoilt = f"evaluate.{name} changed the {changed} model"
                    raise ModelChanged(f"{spoilt}, which others measure too; let it work on a copy (copy.deepcopy)")
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a task that is cancelled is no Exception
                if world_size() > 1:
                    raise
                found = EvaluationResult(
                    notes=[f"{name}: failed ({described(error)}), so it has no figures; see log.txt."],
                    failed={name: traceback.format_exc()},
                )
            _extend(whole, found)
    finally:
        subjects.release()
    return whole


class ModelChanged(Exception):
    """An evaluator changed a model that it was to measure."""


@torch.no_grad()
def measured(
    evaluators: Mapping[str, Evaluator[Any]],
    subjects: Mapping[str, Any],
    splits: Mapping[str, Split],
    randomness: Randomness,
    device: torch.device,
    run: RunFacts | None = None,
    seed: int = 0,
    cache: dict[Any, Any] | None = None,
) -> EvaluationResult:
    """Run evaluators over models on the device; values that evaluators share are computed once, and kept in ``cache``.

    Everything that an evaluator returns carries its key in the recipe, so that two entries of one evaluator stay apart.
    """
    findings = EvaluationResult()
    cache = {} if cache is None else cache
    for name, evaluator in evaluators.items():
        stream = randomness.child(name)
        own = {key: replace(split, ids=split.ids.clone()) for key, split in splits.items()}
        evaluation = Evaluation(subjects, own, stream, device, run or RunFacts(), seed, cache, name)
        with staying():
            returned = evaluator(evaluation)
        who = named(f"evaluate.{name}", evaluator)
        found = promised(returned, EvaluationResult, who)
        records = [_checked(promised(record, Record, f"{who}, among its records,"), name) for record in found.records]
        for picture in found.pictures:
            png = promised(picture, Picture, f"{who}, among its pictures,").png
            if not promised(png, bytes, f"{who}, as a picture's png,").startswith(PNG):
                raise TypeError(f"{who}, as a picture's png, returned bytes that are no PNG")
        for table in found.text_tables:
            for text in (text for row in promised(table, TextTable, f"{who}, among its tables,").rows for text in row):
                promised(text, str, f"{who}, in a table,")
        records += evaluation.differences()
        pictures = [_named(picture, name, evaluator) for picture in found.pictures]
        tables = [_named(table, name, evaluator) for table in found.text_tables]
        items = [{"evaluator": name, **row} | {"evaluator": name} for row in found.items]
        notes = [note if note.startswith(f"{name}: ") else f"{name}: {note.split(': ', 1)[-1]}" for note in found.notes]
        _extend(findings, EvaluationResult(records, pictures, items, tables, notes))
    return findings


def _checked(record: Record, name: str) -> Record:
    """Return a record under the evaluator's key. Raises TypeError or ValueError for values of another kind."""
    value: Any = record.value  # numpy and torch have numbers of their own
    number = float(value)  # also of an integer, which may be too large for one
    record = replace(record, evaluator=name, value=value if isinstance(value, int | float) else number)
    Record.from_dict(record.to_dict())
    return record


def _extend(whole: EvaluationResult, part: EvaluationResult) -> None:
    """Add what one evaluator found."""
    for field in fields(EvaluationResult):
        held, found = getattr(whole, field.name), getattr(part, field.name)
        held.update(found) if isinstance(held, dict) else held.extend(found)


def _named(shown: Shown, key: str, evaluator: Evaluator[Any]) -> Shown:
    """Return a picture or table with the evaluator's key, also in name and title unless it is its registered name."""
    shown = replace(shown, evaluator=key)
    if registry.is_registered("evaluator", key) and registry.resolve("evaluator", key) is type(evaluator):
        return shown
    file_name = re.sub(r"[^\w.-]+", "_", f"{shown.name}_{key}")  # a key may be a dotted path with a colon
    return replace(shown, name=file_name, title=f"{shown.title} ({key})")
