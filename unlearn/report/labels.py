"""Plain words and readable numbers for metrics, units, directions and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unlearn.core.records import Record

SUBJECTS = ("target", "unlearned", "retrained", "teacher", "clean", "corrupted", "target_latent")
"""Order of the subjects in every table; others follow as they come."""

ARROWS = {"lower": "↓", "higher": "↑", "zero": "→ 0", "retrained": "≈", "none": ""}
DIRECTIONS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "zero": "near 0 is better",
    "retrained": "near the retrained model is better",
    "none": "for information",
}

_LABELS = {
    "bits_per_dim": "bits per dimension",
    "likelihood_z": "likelihood z-score",
    "membership_auc": "membership inference AUC",
    "cost_seconds": "time of unlearning",
    "cost_share": "time relative to training",
    "reached": "goal of the method reached",
    "probability": "probability of the answer",
    "rouge_l_recall": "ROUGE-L recall",
    "forget_quality": "forget quality",
    "privleak": "PrivLeak",
    "attack_relearning": "attack by relearning",
    "attack_concept_inversion": "attack by concept inversion",
    "attack_unlearn_diff_atk": "attack by words in front (UnlearnDiffAtk)",
    "attack_ring_a_bell": "attack by other words (Ring-A-Bell)",
    "attack_reinversion": "attack by re-inversion",
    "accuracy": "accuracy on samples",
    "attack_quantization": "attack by rounding the weights",
    "attack_in_context": "attack by examples in context",
    "attack_stepwise": "attack by step-by-step questions",
    "attack_prefix": "attack by a prefix of the answer",
    "attack_paraphrase": "attack by paraphrased questions",
    "attack_traps": "attack by copyright traps (AUC)",
    "codes_changed": "weights whose code changed",
    "fact_accuracy": "accuracy on contradicted facts",
    "corruption_forgetting": "corruption forgotten",
    "lm_eval_acc": "accuracy (lm-eval)",
    "lm_eval_acc_norm": "accuracy by length (lm-eval)",
}
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
    ("score", "match"): "as it is said",
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
"""Entries of ``about`` whose value needs no key."""
_PHRASES = {
    ("sample_share", "category"): "share of ‘{}’ in the samples",
    ("reached", "score"): "goal of {} reached",
}
HEADLINES = (
    "restoration_ratio",
    "identity_similarity",
    "accuracy",
    "sample_share",
    "likelihood_quantile",
    "exact_memorization",
    "model_utility",
)
"""Metrics that a reader grasps first; the verdict prefers them, in this order, among those without a gate."""
_STATISTICS = {"frechet": "Fréchet distance", "kernel": "kernel distance"}
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
YES_NO = ("reached",)
"""Metrics whose value 1 or 0 means yes or no."""


def ordered(subjects: Sequence[str]) -> list[str]:
    """Return the distinct subjects, the usual ones first."""
    distinct = dict.fromkeys(subjects)
    return [name for name in SUBJECTS if name in distinct] + [name for name in distinct if name not in SUBJECTS]


def entry_value(key: str, value: str) -> str:
    """Return an entry of ``about`` without its key."""
    return _VALUES.get((key, value), value)


def metric_label(metric: str) -> str:
    """Return a metric's name in words; an unknown one with spaces for underscores."""
    start, _, features = metric.partition("_")
    if start in _STATISTICS and features:
        return f"{_STATISTICS[start]} ({features})"
    return _LABELS.get(metric, metric.replace("_", " "))


def phrase(record: Record) -> str:
    """Return what a record measures, as the subject of a sentence."""
    for (metric, key), pattern in _PHRASES.items():
        if record.metric == metric and key in record.about:
            return pattern.format(record.about[key])
    where = _SPLITS.get(record.split, record.split.replace("_", " "))
    more = about_text(record.about)
    return metric_label(record.metric) + (f" on {where}" if where else "") + (f" ({more})" if more else "")


def about_text(about: Mapping[str, str]) -> str:
    """Return what else varies, e.g. ``category 3 · 10 items``."""
    return " · ".join(_entry(key, value) for key, value in about.items())


def _entry(key: str, value: str) -> str:
    known = _VALUES.get((key, value))
    return known or (value if key in _SAY_ENOUGH else f"{key.replace('_', ' ')} {value}")


def number(value: float) -> str:
    """Return a pure number with about four figures and a true minus sign."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if value == int(value) and 10 <= size < 1e6:
        text = f"{value:,.0f}"
    elif size >= 1e6 or 0 < size < 5e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 3}f}"
    return text.replace("-", "−")


def figure(value: float, unit: str = "", metric: str = "") -> str:
    """Return a value as it stands in a table whose heading names the unit."""
    if not math.isfinite(value):
        return number(value)
    if metric in YES_NO and value in (0, 1):
        return "yes" if value else "no"
    if metric == "steps" and value == int(value):
        return f"{value:,.0f}"
    if unit == "share":
        size = abs(100 * value)
        return f"{100 * value:.{1 if size >= 0.1 or size == 0 else 2}f} %".replace("-", "−")
    if unit == "s":
        return duration(value)
    if unit in ("bytes", "B"):
        return memory(value)
    if unit == "bits/dim":
        return f"{value:.3f}".replace("-", "−") if abs(value) < 1e4 else number(value)
    return number(value)


def with_unit(value: float, unit: str = "", metric: str = "") -> str:
    """Return a value with its unit, for sentences."""
    text = figure(value, unit, metric)
    spelled = unit in ("", "share", "s", "bytes", "B") or not math.isfinite(value) or metric in YES_NO
    return text if spelled else f"{text} {unit}"


def interval(record: Record) -> str:
    """Return the 95 % interval, or nothing where none is known."""
    if record.ci95 is None or not all(map(math.isfinite, record.ci95)):
        return ""
    low, high = (figure(end, record.unit) for end in record.ci95)
    if low.endswith(" %") and high.endswith(" %"):
        low = low.removesuffix(" %")
    return f"{low} to {high}"


def duration(seconds: float) -> str:
    """Return a time span in the two largest units that matter."""
    if seconds < 60:
        return f"{seconds:.2g} s" if abs(seconds) < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def memory(size: float) -> str:
    """Return a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB"):
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def listed(names: Sequence[Any], most: int = 8) -> str:
    """Return ``‘a’``, ``‘a’ or ‘b’``, or the first few of many."""
    quoted = [f"‘{name}’" for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(quoted)} and {len(names) - most} more"
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)


def forgotten(selection: Mapping[str, Any]) -> str:
    """Return in words what a recipe's ``data.forget`` selects.

    Conditions of data sources that are not known here are shown as they stand.
    """
    return ", ".join(_condition(key, value) for key, value in selection.items() if value is not None and value != [])


def _condition(key: str, value: Any) -> str:
    """Return one condition of a selection."""
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
