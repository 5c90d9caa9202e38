"""Metric records: every evaluator reports its figures in this form."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

LESS_RETRAINED = "_difference"
"""End of the name of a figure from which the retrained model's is subtracted."""

Direction = Literal["lower", "higher", "zero", "retrained", "none"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One figure.

    Args:
        evaluator: the evaluator's key in the recipe's ``evaluate``; its registered name, unless the recipe has another.
        metric: metric name, as in docs/metrics.md.
        subject: target, unlearned, retrained, clean, corrupted or target_latent.
        split: forget, retain, holdout, test, probe, same_person, neighbours, strangers, cross_domain, or empty.
        about: further keys of the figure (category, concept, score, budget, request, identity, features).
        value: the figure; nan if it is undefined.
        ci95: lower and upper end of the 95 % interval, if known.
        n: number of items or samples behind it.
        direction: which values are better; ``retrained`` means close to the retrained model's.
        unit: e.g. ``bits/dim``, ``share``, ``s``; empty for a pure number.
        detector: if a classifier or detector produced the figure, its ``name``, the ``sha256`` of its files (or its
            ``version``), its ``labels`` and its ``threshold``, if it has one.
        label: the metric in words, as its evaluator declares it; empty for its name.
    """

    evaluator: str
    metric: str
    subject: str
    value: float
    split: str = ""
    about: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    ci95: tuple[float, float] | None = None
    n: int = 1
    direction: Direction = "none"
    unit: str = ""
    detector: dict[str, str] = field(default_factory=dict)
    label: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record's row in ``metrics.json``."""
        row = asdict(self)
        row["ci95"] = None if self.ci95 is None else list(self.ci95)
        return {key: value for key, value in row.items() if value or key not in ("detector", "label")}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Return the record of a row of ``metrics.json``, where null is an undefined value.

        Raises:
            TypeError, ValueError: a key is missing or unknown, or a value is of the wrong type.
            OverflowError: an integer is too large for a float.
        """
        value = math.nan if row.get("value", "") is None else row.get("value")
        low, high = row.get("ci95") or (None, None)
        record = cls(**{**row, "value": value, "ci95": None if low is None or high is None else (low, high)})
        texts = (record.evaluator, record.metric, record.subject, record.split, record.unit, record.label)
        numbers = (record.value, record.seed, record.n, *(record.ci95 or ()))
        tags = (*record.about.items(), *record.detector.items())
        if not (
            all(isinstance(text, str) for text in (*texts, *(text for tag in tags for text in tag)))
            and all(isinstance(number, int | float) and isinstance(float(number), float) for number in numbers)
            and record.direction in get_args(Direction)
        ):
            raise TypeError("a value has the wrong type")
        return record


@dataclass(frozen=True)
class Picture:
    """A picture for the report, under ``samples/`` in the run directory.

    Args:
        name: file name without ending.
        title: heading.
        caption: what it shows and how to read it.
        png: the encoded file.
        evaluator: key of the entry of ``evaluate`` that made it.
    """

    name: str
    title: str
    caption: str
    png: bytes
    evaluator: str = ""


@dataclass(frozen=True)
class TextTable:
    """A table of texts for the report, under ``samples/`` in the run directory.

    Args:
        name: file name without ending.
        title: heading.
        caption: what it shows and how to read it.
        columns: headings. The first column groups rows: adjacent rows with the same value stand together.
        rows: cell texts, one list per row.
        truth: heading of the column with the true answers; cells that say the same are marked.
        evaluator: key of the entry of ``evaluate`` that made it.
    """

    name: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    truth: str = ""
    evaluator: str = ""

    def __post_init__(self) -> None:
        if not self.columns or any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"the table {self.name!r} needs columns, and one text per column in every row")


def find(
    records: Sequence[Record],
    metric: str,
    subject: str = "unlearned",
    split: str | None = None,
    evaluator: str | None = None,
    **about: str,
) -> Record | None:
    """Return the first record of a metric, or None; without a split or an evaluator, any matches."""
    for record in records:
        same = record.metric == metric and record.subject == subject
        same = same and split in (None, record.split) and evaluator in (None, record.evaluator)
        if same and all(record.about.get(key) == value for key, value in about.items()):
            return record
    return None
