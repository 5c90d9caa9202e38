"""Records as measurements with one column per subject, for the report and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from unlearn.core.records import LESS_RETRAINED, Direction, Record
from unlearn.core.shown import one_line
from unlearn.report.formatting import figure, interval, with_unit
from unlearn.report.labels import ARROWS, about_text, entry_value, metric_label, ordered, phrase

MeasurementKey = tuple[str, str, str, tuple[tuple[str, str], ...]]
MOST_ROWS = 6
"""Most rows of one metric in the terminal."""


@dataclass(frozen=True)
class Measurement:
    """One figure of all subjects: same evaluator, metric, split and about.

    Args:
        evaluator: key of the evaluator in the recipe.
        metric: its name.
        split: the data it was measured on.
        about: what else varies.
        entry: the evaluator's key where several entries of the recipe measure this metric, else empty.
        cells: subject -> record.
        differences: subject -> record of its difference to the retrained model.
    """

    evaluator: str
    metric: str
    split: str
    about: Mapping[str, str]
    entry: str = ""
    cells: dict[str, Record] = field(default_factory=dict)
    differences: dict[str, Record] = field(default_factory=dict)

    @property
    def first(self) -> Record:
        """The unlearned model's record, or the first there is."""
        return self.cells.get("unlearned") or next(iter(self.cells.values()))

    @property
    def direction(self) -> Direction:
        """Where a better value lies."""
        return self.first.direction

    @property
    def unit(self) -> str:
        """Unit of every cell."""
        return self.first.unit

    @property
    def label(self) -> str:
        """The metric in words, and whose it is where several entries of the recipe measure it."""
        return metric_label(self.first) + (f" ({self.entry})" if self.entry else "")

    @property
    def where(self) -> str:
        """Split and about in words, empty if the metric has neither."""
        return " · ".join(part for part in (self.split.replace("_", " "), about_text(self.about)) if part)

    @property
    def phrase(self) -> str:
        """What is measured, as the subject of a sentence."""
        return phrase(self.first, self.entry)

    @property
    def sizes(self) -> str:
        """Number of items behind each figure: one number if all are equal."""
        return " / ".join(dict.fromkeys(f"{record.n:,}" for record in self.cells.values()))

    def value(self, subject: str) -> float:
        """Return a subject's value, nan if there is none."""
        record = self.cells.get(subject)
        return math.nan if record is None else record.value

    def gap(self, subject: str = "unlearned") -> float:
        """Return how far a subject is from the best value; smaller is better, nan if that is unknown."""
        value = self.value(subject)
        return {
            "lower": value,
            "higher": -value,
            "zero": abs(value),
            "retrained": abs(value - self.value("retrained")),
            "none": math.nan,
        }[self.direction]

    def is_like(self, other: Measurement) -> bool:
        """Whether two runs measured the same."""
        return key(self.first) == key(other.first)


def key(record: Record) -> MeasurementKey:
    """Return what a record measures, without the subject and the seed."""
    return (record.evaluator, record.metric, record.split, tuple(sorted(record.about.items())))


def measured_twice(pairs: Iterable[tuple[str, str]]) -> Collection[str]:
    """Return the metrics that occur with several evaluators, given (evaluator, metric) pairs."""
    metrics = [metric for _, metric in set(pairs)]
    return {metric for metric in metrics if metrics.count(metric) > 1}


def measurements(records: Sequence[Record]) -> list[Measurement]:
    """Bring the subjects side by side, in the order of the records; measurements of one metric stand together.

    The differences to the retrained model stand with the figures that they belong to.
    """
    metrics = list(dict.fromkeys((record.evaluator, record.metric) for record in records))
    several = measured_twice(metrics)
    found: dict[MeasurementKey, Measurement] = {}
    for record in records:
        of = replace(record, metric=record.metric.removesuffix(LESS_RETRAINED))
        if of.metric != record.metric and (row := found.get(key(of))):
            row.differences.setdefault(record.subject, record)
            continue
        entry = record.evaluator if record.metric in several else ""
        new = Measurement(record.evaluator, record.metric, record.split, record.about, entry)
        found.setdefault(key(record), new).cells.setdefault(record.subject, record)
    return sorted(found.values(), key=lambda row: metrics.index((row.evaluator, row.metric)))


@dataclass(frozen=True)
class MetricGroup:
    """All measurements of one metric by one evaluator."""

    label: str
    metric: str
    unit: str
    rows: list[Measurement]


def groups(measured: Sequence[Measurement]) -> list[MetricGroup]:
    """Group measurements by metric."""
    found: dict[tuple[str, str], MetricGroup] = {}
    for row in measured:
        empty = MetricGroup(row.label, row.metric, row.unit, [])
        found.setdefault((row.evaluator, row.metric), empty).rows.append(row)
    return list(found.values())


def metrics_table(records: Sequence[Record]) -> Table:
    """Return the table for the end of a run: target, unlearned and retrained side by side, within 80 columns.

    Only figures of the unlearned model are shown and, of a metric with many rows, only those on the forget data; the
    report has everything, with intervals.
    """
    measured = [row for row in measurements(records) if "unlearned" in row.cells]
    subjects = ordered([subject for row in measured for subject in row.cells])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("metric", "on"):
        table.add_column(name, overflow="fold")
    for subject in subjects:
        style = "bold" if subject == "unlearned" else None
        table.add_column(escape(one_line(subject.replace("_", " "))), justify="right", style=style)
    table.add_column("better")
    for group in groups(measured):
        shown = _shown(group)
        for index, row in enumerate(shown):
            label = group.label if index == 0 else ""
            cells = [cell_text(row, subject, with_sign=True) for subject in subjects]
            texts = [label, _short(row), *cells, ARROWS[row.direction]]
            table.add_row(*(escape(one_line(text)) for text in texts))
        if len(shown) < len(group.rows):
            table.add_row("", f"+ {len(group.rows) - len(shown)} more", style="dim")
    return table


def _short(row: Measurement) -> str:
    """Return split and about in few words; for an attack, neither its split nor its score."""
    values = {key: entry_value(key, value) for key, value in row.about.items()}
    if row.metric.startswith("attack_"):
        return " · ".join(value for key, value in values.items() if key != "score")
    return " · ".join(part for part in (row.split.replace("_", " "), *values.values()) if part)


def _shown(group: MetricGroup) -> list[Measurement]:
    """Return the rows for the terminal: of an attack only its first score.

    Of many rows, those over all categories if several splits have one, else those on the forget data.
    """
    found = group.rows
    if group.metric.startswith("attack_"):
        found = [row for row in found if row.about.get("score") == found[0].about.get("score")]
    if len(found) <= MOST_ROWS:
        return found
    whole = [row for row in found if not row.about]
    if len({row.split for row in whole}) > 1:
        return whole
    return [row for row in found if row.split == "forget"] or found[:1]


def cell_text(row: Measurement, subject: str, with_sign: bool = False) -> str:
    """Return a subject's figure, a dash if it was not measured; ``with_sign`` adds units that have no heading."""
    record = row.cells.get(subject)
    if record is None:
        return "–"
    spell = with_unit if with_sign and row.unit in ("MiB", "GiB") else figure
    return spell(record.value, record.unit, record.metric)


def better(direction: Direction) -> str:
    """Return a direction as arrow and word."""
    return f"{ARROWS[direction]} {direction}" if ARROWS[direction] else ""


def cell(row: Measurement, subject: str) -> dict[str, Any] | None:
    """Return what a cell of a page shows, None if the subject was not measured."""
    record = row.cells.get(subject)
    if record is None:
        return None
    shown = {"figure": figure(record.value, record.unit, record.metric), "interval": interval(record), "n": record.n}
    return {**shown, "difference": difference_text(row, subject)}


def difference_text(row: Measurement, subject: str) -> str:
    """Return a subject's difference to the retrained model with its interval, empty where there is none."""
    record = row.differences.get(subject)
    if record is None or not math.isfinite(record.value):
        return ""
    sign, ends = "+" if record.value > 0 else "", interval(record)
    return f"{sign}{figure(record.value, record.unit)}" + (f" [{ends}]" if ends else "")
