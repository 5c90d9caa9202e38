"""What a single run measures: all subjects, on the forget items that its steps have not judged themselves by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from unlearn.config.schema import Recipe
from unlearn.data.base import Split
from unlearn.evaluators.base import EvaluationResult
from unlearn.experiment.evaluation import evaluate
from unlearn.experiment.inputs import RunInputs
from unlearn.experiment.outcome import Outcome


def measure(recipe: Recipe, inputs: RunInputs, outcome: Outcome, seed: int) -> EvaluationResult:
    """Measure all subjects, on the half of forget that ``select`` has not seen."""
    others = {subject: stored.shared for subject, stored in inputs.models.items()}
    models: dict[str, Callable[[], Any]] = {
        "target": others.pop("target"),
        "unlearned": lambda: outcome.model,
        **others,
    }
    found = evaluate(recipe, models, _unseen(recipe, inputs, inputs.splits), outcome.facts, seed)
    if recipe.requests is None:
        return found
    if inputs.so_far is not None:
        again = replace(recipe, evaluate={name: one for name, one in recipe.evaluate.items() if not one.of_the_run})
        whole = evaluate(again, models, _unseen(recipe, inputs, inputs.so_far), outcome.facts, seed)
        found = _with_so_far(found, whole, list(recipe.evaluate))
    about = recipe.requests.about
    return replace(found, records=[replace(one, about={**one.about, **about}) for one in found.records])


def _unseen(recipe: Recipe, inputs: RunInputs, splits: Mapping[str, Split]) -> dict[str, Split]:
    """Return splits without the forget items that ``select`` has seen."""
    if recipe.select is None:
        return dict(splits)
    forget, seen = splits["forget"], inputs.splits["forget"].halves()[0].ids
    return {**splits, "forget": replace(forget, ids=forget.ids[~torch.isin(forget.ids, seen)])}


def _with_so_far(newest: EvaluationResult, whole: EvaluationResult, order: Sequence[str]) -> EvaluationResult:
    """Return the findings on the newest request, with the figures on the forget items of all requests so far.

    Args:
        newest: findings on the newest request.
        whole: findings on all requests so far, of which the figures on forget and what failed are taken.
        order: the keys of the evaluators.
    """
    more = [
        replace(record, about={**record.about, "forgotten": "so far"})
        for record in whole.records
        if record.split == "forget"
    ]
    records = sorted([*newest.records, *more], key=lambda record: order.index(record.evaluator))
    notes = list(dict.fromkeys([*newest.notes, *whole.failures]))
    return replace(newest, records=records, notes=notes, failed={**whole.failed, **newest.failed})
