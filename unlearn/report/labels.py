"""Plain words for directions, splits and what was forgotten. A metric's label is declared on its evaluator."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn.config.schema import SUBJECTS
from unlearn.core.records import Record
from unlearn.report.formatting import listed

ARROWS = {"lower": "↓", "higher": "↑", "zero": "→ 0", "retrained": "≈", "none": ""}
DIRECTIONS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "zero": "near 0 is better",
    "retrained": "near the retrained model is better",
    "none": "for information",
}
COST_METRICS = ("cost_seconds", "cost_share", "peak_memory", "storage", "steps")
"""What unlearning cost; these say nothing about what is forgotten or kept."""

_VALUES = {
    ("score", "exact_memorization"): "exact memorization",
    ("score", "extraction_strength"): "extraction strength",
    ("score", "loss"): "loss",
    ("score", "zlib"): "zlib",
    ("score", "reference"): "reference model",
    ("score", "min_k"): "Min-K",
    ("score", "min_k_plus_plus"): "Min-K++",
    ("score", "gradient_norm"): "gradient norm",
    ("score", "statistic"): "statistic D",
    ("score", "match"): "in the generated answer",
    ("score", "options"): "among options",
    ("score", "accuracy"): "accuracy on samples",
    ("score", "of_target"): "of the target’s",
    ("score", "on_retain"): "on retain conditions",
    ("score", "to_person"): "similarity to the person",
    ("score", "to_strangers"): "similarity to the nearest stranger",
    ("category", "others"): "other items",
    ("category", "relearned"): "the items relearned",
}
"""Entries of ``about`` in words; others are shown as key and value."""
_SAY_ENOUGH = ("budget", "task")
"""Entries of ``about`` that are clear without their key."""
_PHRASES = {
    ("sample_share", "category"): "share of ‘{}’ in the samples",
    ("reached", "score"): "goal of {} reached",
}
_SPLITS = {
    "": "",
    "forget": "the forget data",
    "retain": "the retain data",
    "holdout": "the holdout data",
    "test": "the test data",
    "probe": "the facts that were contradicted",
    "cross_domain": "what else forget items show",
    "same_person": "other pictures of the person",
    "neighbours": "strangers who look alike",
    "strangers": "other strangers",
}


def ordered(subjects: Sequence[str]) -> list[str]:
    """Return the distinct subjects, the usual ones first."""
    distinct = dict.fromkeys(subjects)
    return [name for name in SUBJECTS if name in distinct] + [name for name in distinct if name not in SUBJECTS]


def entry_value(key: str, value: str) -> str:
    """Return an entry of ``about`` without its key."""
    return _VALUES.get((key, value), value)


def metric_label(record: Record) -> str:
    """Return a metric in words: as its evaluator declares it, else its name with spaces for underscores."""
    return record.label or record.metric.replace("_", " ")


def phrase(record: Record, entry: str = "") -> str:
    """Return what a record measures, as the subject of a sentence; ``entry`` says which evaluator measured it."""
    more = " · ".join(part for part in (about_text(record.about), entry) if part)
    for (metric, key), pattern in _PHRASES.items():
        if record.metric == metric and key in record.about:
            return pattern.format(record.about[key]) + (f" ({entry})" if entry else "")
    where = _SPLITS.get(record.split, record.split.replace("_", " "))
    return metric_label(record) + (f" on {where}" if where else "") + (f" ({more})" if more else "")


def about_text(about: Mapping[str, str]) -> str:
    """Return what else varies, e.g. ``category 3 · 10 items``."""
    return " · ".join(_entry(key, value) for key, value in about.items())


def _entry(key: str, value: str) -> str:
    known = _VALUES.get((key, value))
    return known or (value if key in _SAY_ENOUGH else f"{key.replace('_', ' ')} {value}")


def forgotten(selection: Mapping[str, Any]) -> str:
    """Return in words what a recipe's ``data.forget`` selects; unknown conditions are shown as key and value."""
    return ", ".join(_condition(key, value) for key, value in selection.items() if value is not None and value != [])


def _condition(key: str, value: Any) -> str:
    match key, value:
        case "label", [*names]:
            return f"items labelled {listed(names)}"
        case "all_of", [*names]:
            return f"items that are {listed(names).replace(' or ', ' and ')}"
        case "without", [*names]:
            return f"items that are not {listed(names)}"
        case "ids", [*ids]:
            shown = ", ".join(map(str, ids[:8])) + ", …" * (len(ids) > 8)
            return f"{_items(len(ids))} by id ({shown})"
        case "likelihood_quantile", [low, high]:
            return f"with a likelihood quantile from {low} to {high}"
        case "count", int():
            return f"{_items(value)} in all"
    return f"{key.replace('_', ' ')}: {value}"


def _items(count: int) -> str:
    return f"{count} item" + "s" * (count != 1)
