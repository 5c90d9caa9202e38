"""Records as rows with one column a subject, for the report and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from unlearn.core.records import Direction, Record
from unlearn.report.labels import (
    ARROWS,
    DIRECTIONS,
    about_text,
    entry_value,
    figure,
    interval,
    metric_label,
    ordered,
    phrase,
    with_unit,
)

Key = tuple[str, str, str, tuple[tuple[str, str], ...]]
MOST_ROWS = 6
"""Rows a metric may fill in the terminal."""


@dataclass(frozen=True)
class Row:
    """One measurement of all subjects: same evaluator, metric, split and about."""

    evaluator: str
    metric: str
    split: str
    about: Mapping[str, str]
    cells: dict[str, Record] = field(default_factory=dict)

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
    def where(self) -> str:
        """Split and about in words, empty where the metric has neither."""
        return " · ".join(part for part in (self.split.replace("_", " "), about_text(self.about)) if part)

    @property
    def phrase(self) -> str:
        """What is measured, as the subject of a sentence."""
        return phrase(self.first)

    @property
    def sizes(self) -> str:
        """Number of items behind each figure: one number where all are equal."""
        sizes = list(dict.fromkeys(f"{record.n:,}" for record in self.cells.values()))
        return " / ".join(sizes)

    def value(self, subject: str) -> float:
        """Return a subject's value, nan where there is none."""
        record = self.cells.get(subject)
        return math.nan if record is None else record.value

    def gap(self, subject: str = "unlearned") -> float:
        """Return how far a subject is from the best value; smaller is better, nan where that is unknown."""
        value = self.value(subject)
        return {
            "lower": value,
            "higher": -value,
            "zero": abs(value),
            "retrained": abs(value - self.value("retrained")),
            "none": math.nan,
        }[self.direction]


def key(record: Record) -> Key:
    """Return what a record measures, without the subject and the seed."""
    return (record.evaluator, record.metric, record.split, tuple(sorted(record.about.items())))


def rows(records: Sequence[Record]) -> list[Row]:
    """Bring the subjects side by side, in the order of the records, rows of one metric together."""
    found: dict[Key, Row] = {}
    for record in records:
        row = found.setdefault(key(record), Row(record.evaluator, record.metric, record.split, record.about))
        row.cells.setdefault(record.subject, record)
    metrics = list(dict.fromkeys((row.evaluator, row.metric) for row in found.values()))
    return sorted(found.values(), key=lambda row: metrics.index((row.evaluator, row.metric)))


@dataclass(frozen=True)
class Group:
    """All rows of one metric."""

    label: str
    metric: str
    unit: str
    rows: list[Row]


def groups(measured: Sequence[Row]) -> list[Group]:
    """Gather rows by metric."""
    found: dict[tuple[str, str], Group] = {}
    for row in measured:
        empty = Group(metric_label(row.metric), row.metric, row.unit, [])
        found.setdefault((row.evaluator, row.metric), empty).rows.append(row)
    return list(found.values())


def metrics_table(records: Sequence[Record]) -> Table:
    """Return the table for the end of a run: target, unlearned and retrained side by side, within 80 columns.

    Figures that say nothing about the unlearned model are left out, and of a metric with many rows all but those on
    the forget data; the report has everything, with intervals.
    """
    measured = [row for row in rows(records) if "unlearned" in row.cells]
    subjects = ordered([subject for row in measured for subject in row.cells])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("metric", "on"):
        table.add_column(name, overflow="fold")
    for subject in subjects:
        table.add_column(
            escape(subject.replace("_", " ")), justify="right", style="bold" if subject == "unlearned" else None
        )
    table.add_column("better")
    for group in groups(measured):
        shown = _shown(group)
        for index, row in enumerate(shown):
            label = metric_label(row.metric) if index == 0 else ""
            where = _short(row)
            cells = [cell_text(row, subject, with_sign=True) for subject in subjects]
            table.add_row(*map(escape, [label, where, *cells, ARROWS[row.direction]]))
        if len(shown) < len(group.rows):
            table.add_row("", f"+ {len(group.rows) - len(shown)} more", style="dim")
    return table


def _short(row: Row) -> str:
    """Return split and about in few words; an attack is on the forget data, and its first score is meant."""
    values = {key: entry_value(key, value) for key, value in row.about.items()}
    if row.metric.startswith("attack_"):
        return " · ".join(value for key, value in values.items() if key != "score")
    return " · ".join(part for part in (row.split.replace("_", " "), *values.values()) if part)


def _shown(group: Group) -> list[Row]:
    """Return the rows for the terminal; of an attack's scores the first alone.

    Of many rows those over all categories, where several splits have one, and else those on the forget data.
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


def cell_text(row: Row, subject: str, with_sign: bool = False) -> str:
    """Return a subject's figure, a dash where it was not measured; ``with_sign`` adds units that have no heading."""
    record = row.cells.get(subject)
    if record is None:
        return "–"
    spell = with_unit if with_sign and row.unit in ("MiB", "GiB") else figure
    return spell(record.value, record.unit, record.metric)


def better(direction: Direction) -> str:
    """Return a direction as arrow and word."""
    return f"{ARROWS[direction]} {direction}" if ARROWS[direction] else ""


def cell(row: Row, subject: str) -> dict[str, Any] | None:
    """Return what a cell of a page shows, None where the subject was not measured."""
    record = row.cells.get(subject)
    if record is None:
        return None
    return {"figure": figure(record.value, record.unit, record.metric), "interval": interval(record), "n": record.n}


def explain(direction: Direction) -> str:
    """Return a direction as a clause."""
    return DIRECTIONS[direction]
