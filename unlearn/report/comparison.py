"""Several runs side by side: aligned figures, forget-utility charts, and what the recipes differ in."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from unlearn.report.charts import Chart, Mark, Polyline, axis_label, is_drawn, scatter
from unlearn.report.formatting import YES_NO, figure
from unlearn.report.labels import COST_METRICS, DIRECTIONS, metric_label
from unlearn.report.page import deck, flatten, method_name
from unlearn.report.read_run import RunFolder
from unlearn.report.table import Measurement, MeasurementKey, cell, cell_text, measured_twice, measurements
from unlearn.report.verdict import forget_row, judge, kept_row, last_of

Section = Literal["Forgetting", "Kept", "Cost"]
SECTIONS: dict[Section, str] = {
    "Forgetting": "Figures on the forget data and its like",
    "Kept": "Figures on everything else",
    "Cost": "Time, steps and memory",
}
SHOWS_FORGETTING = ("forget", "holdout", "same_person")
"""Splits of the section on forgetting."""
WHAT_IS_FORGOTTEN = ("category", "concept", "identity", "request")
"""Entries of ``about`` in which the runs of one chart may differ."""
LABEL = (28.0, 14.0)
"""Points closer than this in the drawing, across and up, share one label."""
ChartAxes = tuple[str, MeasurementKey, MeasurementKey]
"""The data, the forget figure (up) and the utility figure (across) of a forget-utility chart."""


@dataclass(frozen=True)
class Compared:
    """One run in a comparison, with its number (from 1) and a short name that no other run has."""

    number: int
    label: str
    run: RunFolder

    @cached_property
    def rows(self) -> list[Measurement]:
        """Its figures."""
        return measurements(self.run.records)

    @cached_property
    def last(self) -> list[Measurement]:
        """Its figures after the last size or request, all where there is one."""
        return measurements(last_of(self.run.records))

    @cached_property
    def forget(self) -> Measurement | None:
        """Its headline figure on the forget data."""
        return forget_row(self.run, self.last)

    @cached_property
    def kept(self) -> Measurement | None:
        """Its headline figure on everything else."""
        return kept_row(self.run, self.last)

    @cached_property
    def data(self) -> str:
        """The data without what is forgotten; figures compare only where this is equal."""
        part = self.run.part("data").items()
        return _text({key: value for key, value in part if key not in ("forget", "retain", "holdout")})


@dataclass(frozen=True)
class AlignedLine:
    """One measurement over all runs; ``cells`` has None for a run that did not measure it."""

    label: str
    where: str
    cells: list[Measurement | None]
    best: set[int]

    @property
    def first(self) -> Measurement:
        """The first run's measurement that is there."""
        return next(row for row in self.cells if row is not None)


@dataclass(frozen=True)
class TradeoffChart:
    """One forget-utility chart; the legend holds style class and name of each run in it."""

    title: str
    caption: str
    chart: Chart
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class TradeoffPoint:
    """A run in a forget-utility chart: its forget figure (up) and its utility figure (across)."""

    entry: Compared
    across: Measurement
    up: Measurement


def compared(runs: Sequence[RunFolder]) -> list[Compared]:
    """Number the runs and name each by its recipe, and by its folder if recipes repeat."""
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else f"{run.name} {run.path.name}" for run in runs]
    return [Compared(index, label, run) for index, (label, run) in enumerate(zip(labels, runs, strict=True), start=1)]


def comparison_context(entries: Sequence[Compared]) -> dict[str, Any]:
    """Return everything that the template of a comparison shows."""
    charts, left = tradeoff_charts(entries)
    return {
        "runs": [{"entry": entry, "verdict": judge(entry.run), "deck": deck(entry.run)} for entry in entries],
        "tradeoffs": charts,
        "undrawn": left,
        "sections": [(name, SECTIONS[name], lines) for name, lines in aligned(entries).items()],
        "aligned_cell": aligned_cell,
        "differences": differences(entries),
    }


def section(row: Measurement) -> Section:
    """Return the section of a comparison that a figure belongs to."""
    if row.metric in COST_METRICS:
        return "Cost"
    return "Forgetting" if row.split in SHOWS_FORGETTING or row.metric in YES_NO else "Kept"


def aligned(entries: Sequence[Compared]) -> dict[Section, list[AlignedLine]]:
    """Bring the runs' figures side by side, by section.

    Figures on the forget data align whatever each run forgets, as long as no run has several of the kind.
    """
    single = _single_forget_figures(entries)
    several = measured_twice((row.evaluator, row.metric) for entry in entries for row in entry.rows)
    found: dict[MeasurementKey, list[Measurement | None]] = {}
    for index, entry in enumerate(entries):
        for row in entry.rows:
            about = () if (row.evaluator, row.metric, row.split) in single else tuple(sorted(row.about.items()))
            found.setdefault((row.evaluator, row.metric, row.split, about), [None] * len(entries))[index] = row
    sections: dict[Section, list[AlignedLine]] = {name: [] for name in SECTIONS}
    for (evaluator, metric, split, about), cells in found.items():
        first = next(row for row in cells if row is not None)
        label = metric_label(first.first) + (f" ({evaluator})" if metric in several else "")
        where = first.where if about or not first.about else split
        sections[section(first)].append(AlignedLine(label, where, cells, _best(entries, cells)))
    return {name: lines for name, lines in sections.items() if lines}


def _single_forget_figures(entries: Sequence[Compared]) -> set[tuple[str, str, str]]:
    """Return the (evaluator, metric, split) of forget figures that no run has twice."""
    counts = [
        [(row.evaluator, row.metric, row.split) for row in entry.rows if row.split == "forget"] for entry in entries
    ]
    return {name for names in counts for name in names if all(other.count(name) <= 1 for other in counts)}


def _best(entries: Sequence[Compared], cells: Sequence[Measurement | None]) -> set[int]:
    """Return the runs with the best figure, if all that have one forget the same of the same data.

    Figures that read the same are equally good; if all do, none is best.
    """
    found = {index: row for index, row in enumerate(cells) if row is not None and math.isfinite(row.gap())}
    if len(found) < 2 or len({_text(entries[index].run.part("data")) for index in found}) > 1:
        return set()
    top = min(found.values(), key=Measurement.gap)
    best = {index for index, row in found.items() if cell_text(row, "unlearned") == cell_text(top, "unlearned")}
    return best if len(best) < len(found) else set()


def _text(part: dict[str, Any]) -> str:
    return json.dumps(part, sort_keys=True, default=str)


def differences(entries: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return the recipe keys whose values differ, with each run's value; a dash if a recipe lacks the key."""
    trees = [
        flatten({key: value for key, value in entry.run.recipe.items() if key not in ("about", "output")})
        for entry in entries
    ]
    names = dict.fromkeys(name for tree in trees for name in tree)
    values = {name: [tree.get(name, "–") for tree in trees] for name in names}
    return [(name, cells) for name, cells in values.items() if len(set(cells)) > 1]


def aligned_cell(row: Measurement | None) -> dict[str, Any] | None:
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


def tradeoff_charts(entries: Sequence[Compared]) -> tuple[list[TradeoffChart], list[Compared]]:
    """Draw runs that share data and both figures in one chart; return the charts, and the runs in none of them."""
    left, drawn = list(entries), []
    while left:
        offers = [_possible_axes(entry) for entry in left]
        counts = {axes: sum(axes in others for others in offers) for own in offers for axes in own}
        if not counts:
            break
        best = max(counts, key=lambda axes: counts[axes])  # the axes that most of the remaining runs share
        drawn.append(_tradeoff([entry for entry, own in zip(left, offers, strict=True) if best in own], best))
        left = [entry for entry, own in zip(left, offers, strict=True) if best not in own]
    return drawn, left


def _headlines_first(entry: Compared) -> list[Measurement]:
    rows = [row for row in (entry.forget, entry.kept, *entry.rows) if row is not None]
    return [row for row in rows if is_drawn(row.value("unlearned"))]


def _possible_axes(entry: Compared) -> list[ChartAxes]:
    """Return the axes that a run can be drawn on, those of its headline figures first."""
    usable = [row for row in _headlines_first(entry) if row.direction != "none"]
    up = [row for row in usable if row.split == "forget" and row.metric not in YES_NO]
    across = [row for row in usable if section(row) == "Kept" and "category" not in row.about]
    return list(dict.fromkeys((entry.data, _name(y), _name(x)) for y in up for x in across))


def _name(row: Measurement) -> MeasurementKey:
    about = tuple(sorted(item for item in row.about.items() if item[0] not in WHAT_IS_FORGOTTEN))
    return (row.evaluator, row.metric, row.split, about)


def _tradeoff(members: Sequence[Compared], axes: ChartAxes) -> TradeoffChart:
    data, forget, kept = axes
    points = [TradeoffPoint(entry, _measurement(entry, kept), _measurement(entry, forget)) for entry in members]
    # Runs with different targets are compared by how far each one moved from its own target.
    bases = [point.across.value("target") for point in points]
    is_change = all(map(math.isfinite, bases)) and max(bases) > min(bases)
    methods = list(dict.fromkeys(method_name(entry.run) for entry in members))
    styles = [f"line{methods.index(method_name(entry.run)) % 6}" for entry in members]
    marks = [mark for point, css in zip(points, styles, strict=True) for mark in _marks(point, css, is_change)]
    x, y = points[0].across, points[0].up
    across = f"{x.phrase}, change from the target" if is_change else axis_label(x)
    is_same = len({point.up.phrase for point in points}) == 1
    up = axis_label(y) if is_same else f"{y.label} on what each run forgets ({DIRECTIONS[y.direction]})"
    chart = scatter("Forgetting against utility", marks, across, up, (x.unit, y.unit))
    assert chart is not None  # the figures of these axes are finite
    return TradeoffChart(
        title=f"{json.loads(data).get('name') or 'data'}: {y.label} against {x.label}",
        caption=f"Up and down: {up}. Left and right: {across}{f' ({DIRECTIONS[x.direction]})' if is_change else ''}.",
        chart=_readable(_with_front(chart, points, [mark for mark in marks if mark.label])),
        legend=[(css, f"{entry.number} {entry.label}") for css, entry in zip(styles, members, strict=True)],
    )


def _marks(point: TradeoffPoint, css: str, is_change: bool) -> list[Mark]:
    """Return a run's mark, and faint ones for its target and its retrained model."""
    entry, x, y = point.entry, point.across, point.up
    base = x.value("target") if is_change else 0.0
    found = [
        Mark(x.value(s) - base, y.value(s), s, f"{entry.number} {entry.label}: {s}", faint=True)
        for s in ("target", "retrained")
    ]
    across, up = x.cells["unlearned"], y.cells["unlearned"]
    title = f"{entry.number} {entry.label}: {figure(up.value, y.unit)} / {figure(across.value, x.unit)}"
    ends = None if is_change else across.ci95  # the interval of a change is not known
    return [*found, Mark(across.value - base, up.value, css, title, ends, up.ci95, label=str(entry.number))]


def _measurement(entry: Compared, name: MeasurementKey) -> Measurement:
    """Return a run's measurement of this name, its headline figure if that is one."""
    return next(row for row in _headlines_first(entry) if _name(row) == name)


def _with_front(chart: Chart, points: Sequence[TradeoffPoint], marks: Sequence[Mark]) -> Chart:
    """Join the runs that no other run beats in both figures."""
    signs = {"lower": 1, "higher": -1}
    x_sign, y_sign = signs.get(points[0].across.direction, 0), signs.get(points[0].up.direction, 0)
    if not x_sign or not y_sign:
        return chart
    labels = {marks[index].label for index in pareto([(x_sign * mark.x, y_sign * mark.y) for mark in marks])}
    front = sorted((mark for mark in chart.marks if mark.label in labels), key=lambda mark: mark.x)
    path = "M" + "L".join(f"{mark.x:g} {mark.y:g}" for mark in front)
    return replace(chart, lines=[Polyline(path, "front", "not beaten in both figures")]) if len(front) > 1 else chart


def _readable(chart: Chart) -> Chart:
    """Write the numbers of points that lie close to each other once, side by side."""
    marks = list(chart.marks)
    for index, mark in enumerate(marks):
        near = [other for other in marks if mark.label and other.label and _is_near(mark, other)]
        marks = [replace(one, label="") if one in near else one for one in marks]
        marks[index] = replace(mark, label=", ".join(one.label for one in near))
    return replace(chart, marks=marks)


def _is_near(mark: Mark, other: Mark) -> bool:
    return abs(mark.x - other.x) < LABEL[0] and abs(mark.y - other.y) < LABEL[1]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (both coordinates: lower is better) that no other point beats."""
    return [
        index
        for index, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in points)
    ]
