"""The table of docs/metrics.md, from the declared metrics of all evaluators."""

from collections.abc import Mapping
from typing import Any

from unlearn.evaluators.base import Evaluator, Metric

HEADINGS = ("metric", "formula", "unit", "direction", "evaluator", "source")


def markdown_table(evaluators: Mapping[str, type[Evaluator[Any]]]) -> str:
    """Return the table of all metrics, with one row per metric and evaluator."""
    rows = [HEADINGS, ("---",) * len(HEADINGS)]
    for name, evaluator in evaluators.items():
        for metric in evaluator.metrics:
            formula = metric.formula.replace("|", "\\|")  # a bare one would end the cell
            cells = (f"`{metric.name}`", formula, metric.unit, direction_text(metric), f"`{name}`", metric.source)
            rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def direction_text(metric: Metric) -> str:
    """Return the declared direction in words, e.g. "forget and holdout `retrained`, retain `higher`"."""
    if isinstance(metric.direction, str):
        parts = [f"`{metric.direction}`"]
    else:
        by_direction: dict[str, list[str]] = {}
        for where, direction in metric.direction.items():
            by_direction.setdefault(direction, []).append(where)
        parts = [f"{_listed(where)} `{direction}`" for direction, where in by_direction.items()]
    return ", ".join(parts) + (f"; {metric.otherwise}" if metric.otherwise else "")


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
