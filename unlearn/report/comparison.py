"""Several runs side by side: aligned figures, forget-utility pictures, and what the recipes differ in."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unlearn.report.labels import YES_NO, figure, metric_label
from unlearn.report.page import flatten
from unlearn.report.read_run import RunFolder
from unlearn.report.table import Row, cell, cell_text, rows
from unlearn.report.verdict import forget_row, kept_row

SECTIONS = {
    "Forgetting": "Figures on the forget data and its like",
    "Kept": "Figures on everything else",
    "Cost": "Time, steps and memory",
}
FORGET_SPLITS = ("forget", "holdout", "same_person")
LineKey = tuple[str, str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Compared:
    """One run in a comparison, with its number (from 1) and a short name that no other run has."""

    number: int
    label: str
    run: RunFolder

    @cached_property
    def rows(self) -> list[Row]:
        """Its figures."""
        return rows(self.run.records)

    @cached_property
    def forget(self) -> Row | None:
        """Its headline figure on the forget data."""
        return forget_row(self.run, self.rows)

    @cached_property
    def kept(self) -> Row | None:
        """Its headline figure on the rest."""
        return kept_row(self.run, self.rows)

    @cached_property
    def data(self) -> str:
        """The data but for what is forgotten; figures compare only where this is equal."""
        part = {
            key: value for key, value in self.run.part("data").items() if key not in ("forget", "retain", "holdout")
        }
        return json.dumps(part, sort_keys=True, default=str)


@dataclass(frozen=True)
class AlignedLine:
    """One measurement over all runs; ``cells`` has None where a run did not measure it."""

    label: str
    where: str
    unit: str
    cells: list[Row | None]
    best: set[int]

    @property
    def first(self) -> Row:
        """The first run's figures that are there."""
        return next(row for row in self.cells if row is not None)


def compared(runs: Sequence[RunFolder]) -> list[Compared]:
    """Number the runs and name each by its recipe, and by its folder where recipes repeat."""
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else f"{run.name} {run.path.name}" for run in runs]
    return [Compared(index, label, run) for index, (label, run) in enumerate(zip(labels, runs, strict=True), start=1)]


def section(row: Row) -> str:
    """Return the section of a comparison that a figure belongs to."""
    if row.evaluator == "cost":
        return "Cost"
    return "Forgetting" if row.split in FORGET_SPLITS or row.metric in YES_NO else "Kept"


def aligned(entries: Sequence[Compared]) -> dict[str, list[AlignedLine]]:
    """Bring the runs' figures side by side, by section.

    Figures on the forget data align whatever each run forgets, as long as no run has several of the kind.
    """
    single = _single_forget_figures(entries)
    found: dict[LineKey, list[Row | None]] = {}
    for index, entry in enumerate(entries):
        for row in entry.rows:
            about = () if (row.metric, row.split) in single else tuple(sorted(row.about.items()))
            line = found.setdefault((row.evaluator, row.metric, row.split, about), [None] * len(entries))
            line[index] = row
    sections: dict[str, list[AlignedLine]] = {name: [] for name in SECTIONS}
    for (_, _, split, about), cells in found.items():
        first = next(row for row in cells if row is not None)
        where = first.where if about or not first.about else split
        made = AlignedLine(metric_label(first.metric), where, first.unit, cells, _best(entries, cells))
        sections[section(first)].append(made)
    return {name: lines for name, lines in sections.items() if lines}


def _single_forget_figures(entries: Sequence[Compared]) -> set[tuple[str, str]]:
    """Return the (metric, split) of forget figures that no run has twice."""
    counts = [[(row.metric, row.split) for row in entry.rows if row.split == "forget"] for entry in entries]
    return {name for names in counts for name in names if all(other.count(name) <= 1 for other in counts)}


def _best(entries: Sequence[Compared], cells: Sequence[Row | None]) -> set[int]:
    """Return the runs with the best figure, where all that have one forget the same of the same data.

    Figures that read the same are equally good; where all do, none is best.
    """
    found = {index: row for index, row in enumerate(cells) if row is not None and math.isfinite(row.gap())}
    shared = {json.dumps(entries[index].run.part("data"), sort_keys=True, default=str) for index in found}
    if len(found) < 2 or len(shared) > 1:
        return set()
    top = min(found.values(), key=Row.gap)
    best = {index for index, row in found.items() if cell_text(row, "unlearned") == cell_text(top, "unlearned")}
    return best if len(best) < len(found) else set()


def differences(entries: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return the recipe keys whose values differ, with each run's value; a dash where a recipe lacks the key."""
    trees = [
        flatten({key: value for key, value in entry.run.recipe.items() if key not in ("about", "output")})
        for entry in entries
    ]
    names = dict.fromkeys(name for tree in trees for name in tree)
    values = {name: [tree.get(name, "–") for tree in trees] for name in names}
    return [(name, cells) for name, cells in values.items() if len(set(cells)) > 1]


def aligned_cell(row: Row | None) -> dict[str, Any] | None:
    """Return a run's figure with the target's and the retrained model's in a second line."""
    shown = cell(row, "unlearned") if row is not None else None
    if row is None or shown is None:
        return None
    others = [
        f"{subject} {figure(row.value(subject), row.unit, row.metric)}"
        for subject in ("target", "retrained")
        if subject in row.cells
    ]
    return shown | {"others": others}
