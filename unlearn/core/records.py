"""Metric records: the one form in which every evaluator reports a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Direction = Literal["lower", "higher", "zero", "retrained", "none"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One figure.

    Args:
        evaluator: registry name of the evaluator.
        metric: its name, listed in docs/metrics.md.
        subject: target, unlearned, retrained, clean, corrupted or target_latent.
        split: forget, retain, holdout, test, probe, same_person, neighbours, strangers, cross_domain, or empty.
        about: what else varies (category, concept, score, budget, request, identity, features).
        value: the figure; nan where it is undefined.
        ci95: lower and upper end of the 95 % interval, where one is known.
        n: number of items or samples behind it.
        direction: where a better value lies; ``retrained`` means close to the retrained model's.
        unit: e.g. ``bits/dim``, ``share``, ``s``; empty for a pure number.
        detector: where a classifier or detector is behind the figure, its ``name``, the ``sha256`` of its files (or
            its ``version``), its ``labels`` and, where it has one, its ``threshold``.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the record as it stands in ``metrics.json``."""
        row = asdict(self)
        row["ci95"] = None if self.ci95 is None else list(self.ci95)
        if not self.detector:
            del row["detector"]
        return row


def find(
    records: Sequence[Record], metric: str, subject: str = "unlearned", split: str | None = None, **about: str
) -> Record | None:
    """Return the first record of a metric, or None."""
    for record in records:
        if record.metric == metric and record.subject == subject and split in (None, record.split):
            if all(record.about.get(key) == value for key, value in about.items()):
                return record
    return None
