"""The forget-utility pictures of a comparison, and the page around them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn.report.charts import Chart, Dot, Line, Mark, scatter
from unlearn.report.comparison import SECTIONS, Compared, aligned, aligned_cell, differences, section
from unlearn.report.drawings import axis_label
from unlearn.report.labels import YES_NO, figure, metric_label
from unlearn.report.page import deck, method_name
from unlearn.report.table import Row, explain
from unlearn.report.verdict import judge

WHAT_IS_FORGOTTEN = ("category", "concept", "identity", "request")
"""Entries of ``about`` in which the runs of one picture may differ."""

LABEL = (28.0, 14.0)
"""Points closer than this in the drawing, across and up, share one label."""

Name = tuple[str, str, str, tuple[tuple[str, str], ...]]
Pair = tuple[str, Name, Name]


@dataclass(frozen=True)
class Panel:
    """One forget-utility picture; the legend holds style class and name of each run in it."""

    title: str
    caption: str
    chart: Chart
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class Place:
    """Where a run stands in a picture: its forget figure (up) and its utility figure (across)."""

    entry: Compared
    across: Row
    up: Row


def comparison_context(entries: Sequence[Compared]) -> dict[str, Any]:
    """Return everything that the template of a comparison shows."""
    drawn, left = panels(entries)
    return {
        "runs": [{"entry": entry, "verdict": judge(entry.run), "deck": deck(entry.run)} for entry in entries],
        "panels": drawn,
        "undrawn": left,
        "sections": [(name, SECTIONS[name], lines) for name, lines in aligned(entries).items()],
        "aligned_cell": aligned_cell,
        "differences": differences(entries),
    }


def panels(entries: Sequence[Compared]) -> tuple[list[Panel], list[Compared]]:
    """Draw runs that share data and both figures in one picture; return the pictures and the runs in none."""
    left, drawn = list(entries), []
    while left:
        offers = [_pairs(entry) for entry in left]
        counts = {pair: sum(pair in others for others in offers) for pairs in offers for pair in pairs}
        if not counts:
            break
        best = max(counts, key=lambda pair: counts[pair])
        drawn.append(_panel([entry for entry, pairs in zip(left, offers, strict=True) if best in pairs], best))
        left = [entry for entry, pairs in zip(left, offers, strict=True) if best not in pairs]
    return drawn, left


def _pairs(entry: Compared) -> list[Pair]:
    """Return the (data, forget figure, utility figure) that a run can be drawn with, its headline figures first."""
    rows = [row for row in (entry.forget, entry.kept, *entry.rows) if row is not None]
    usable = [row for row in rows if math.isfinite(row.value("unlearned")) and row.direction != "none"]
    up = [row for row in usable if row.split == "forget" and row.metric not in YES_NO]
    across = [row for row in usable if section(row) == "Kept" and "category" not in row.about]
    return list(dict.fromkeys((entry.data, _name(y), _name(x)) for y in up for x in across))


def _name(row: Row) -> Name:
    about = tuple(sorted(item for item in row.about.items() if item[0] not in WHAT_IS_FORGOTTEN))
    return (row.evaluator, row.metric, row.split, about)


def _panel(members: Sequence[Compared], pair: Pair) -> Panel:
    places = [Place(entry, _row(entry, pair[2]), _row(entry, pair[1])) for entry in members]
    bases = [place.across.value("target") for place in places]
    is_change = all(map(math.isfinite, bases)) and max(bases) > min(bases)
    methods = list(dict.fromkeys(method_name(entry.run) for entry in members))
    styles = [f"line{methods.index(method_name(entry.run)) % 6}" for entry in members]
    dots = [dot for place, css in zip(places, styles, strict=True) for dot in _dots(place, css, is_change)]
    x, y = places[0].across, places[0].up
    across = f"{x.phrase}, change from the target" if is_change else axis_label(x)
    up = axis_label(y) if len({place.up.phrase for place in places}) == 1 else _general_label(y)
    chart = scatter("Forgetting against utility", dots, across, up, (x.unit, y.unit))
    if chart is None:
        raise ValueError("a panel needs finite figures")
    return Panel(
        title=f"{json.loads(pair[0]).get('name') or 'data'}: {metric_label(y.metric)} against {metric_label(x.metric)}",
        caption=f"Up and down: {up}. Left and right: {across}{f' ({explain(x.direction)})' if is_change else ''}.",
        chart=_readable(_with_front(chart, places, [dot for dot in dots if dot.label])),
        legend=[(css, f"{entry.number} {entry.label}") for css, entry in zip(styles, members, strict=True)],
    )


def _dots(place: Place, css: str, is_change: bool) -> list[Dot]:
    """Return a run's point, and faint ones for its target and its retrained model."""
    entry, x, y = place.entry, place.across, place.up
    base = x.value("target") if is_change else 0.0
    found = [
        Dot(x.value(s) - base, y.value(s), s, f"{entry.number} {entry.label}: {s}", faint=True)
        for s in ("target", "retrained")
    ]
    across, up = x.cells["unlearned"], y.cells["unlearned"]
    title = f"{entry.number} {entry.label}: {figure(up.value, y.unit)} / {figure(across.value, x.unit)}"
    ends = None if is_change else across.ci95  # the interval of a change is not known
    return [*found, Dot(across.value - base, up.value, css, title, ends, up.ci95, label=str(entry.number))]


def _row(entry: Compared, name: Name) -> Row:
    """Return a run's row of this name, its headline row if that is one."""
    rows = [row for row in (entry.forget, entry.kept, *entry.rows) if row is not None and _name(row) == name]
    return next(row for row in rows if math.isfinite(row.value("unlearned")))


def _general_label(row: Row) -> str:
    return f"{metric_label(row.metric)} on what each run forgets ({explain(row.direction)})"


def _with_front(chart: Chart, places: Sequence[Place], dots: Sequence[Dot]) -> Chart:
    """Join the runs that no other run beats in both figures."""
    x_sign, y_sign = _sign(places[0].across), _sign(places[0].up)
    if not x_sign or not y_sign:
        return chart
    labels = {dots[index].label for index in pareto([(x_sign * dot.x, y_sign * dot.y) for dot in dots])}
    marks = sorted((mark for mark in chart.marks if mark.label in labels), key=lambda mark: mark.x)
    path = "M" + "L".join(f"{mark.x:g} {mark.y:g}" for mark in marks)
    return replace(chart, lines=[Line(path, "front", "not beaten in both figures")]) if len(marks) > 1 else chart


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


def _sign(row: Row) -> int:
    return {"lower": 1, "higher": -1}.get(row.direction, 0)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (both coordinates: lower is better) that no other point beats."""
    return [
        index
        for index, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in points)
    ]
