"""The report's charts: what they show, and its geometry, which ``charts.html.j2`` draws as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unlearn.config.schema import SUBJECTS
from unlearn.report.formatting import figure, number
from unlearn.report.labels import DIRECTIONS, ordered
from unlearn.report.read_run import RunFolder
from unlearn.report.table import Measurement, cell, measurements
from unlearn.report.verdict import forget_row, kept_row

Points = Sequence[tuple[float, float]]
Interval = tuple[float, float] | None
MOST_POINTS = 400
"""A line with more points keeps only the lowest and highest point of equal stretches, so that peaks stay."""
LOG_RANGE = 1000.0
"""A positive line that spans more than this factor is drawn on a logarithmic axis."""
FIRST_CURVES = ("loss", "cosine", "z", "share")
"""Quantities whose charts come before the others."""


@dataclass(frozen=True)
class Tick:
    """A position in the drawing and its text."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from ``low`` to ``high``, drawn from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    unit: str = ""

    def __call__(self, value: float) -> float:
        """Return where a value lies in the drawing, to a tenth of a unit."""
        low, high, at = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[Tick]:
        """Return about ``count`` ticks at round values."""
        values = _powers(self.low, self.high) if self.log else round_values(self.low, self.high, count)
        digits = 0 if len(values) < 2 else max(0, -math.floor(math.log10(abs(values[1] - values[0])) + 1e-9))
        return [Tick(self(value), self._text(value, digits)) for value in values]

    def _text(self, value: float, digits: int) -> str:
        if not self.log and abs(value) < 1e-9 * (self.high - self.low):
            text = "0 %" if self.unit == "share" else "0"
        elif self.unit == "share":
            text = f"{100 * value:.{max(0, digits - 2)}f} %"
        elif self.log or digits > 3 or abs(value) >= 1e6:
            text = f"{value:.3g}"
        else:
            text = f"{value:,.{digits}f}"
        return text.replace("-", "−")


@dataclass(frozen=True)
class Polyline:
    """A polyline: SVG path, style class, name, and its last value as text."""

    path: str
    css: str
    name: str
    last: str = ""


@dataclass(frozen=True)
class Mark:
    """A point with its intervals, in the units of the figures or of the drawing; ``title`` is shown on hovering."""

    x: float
    y: float
    css: str
    title: str
    x_ends: Interval = None
    y_ends: Interval = None
    faint: bool = False
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """Everything the template draws."""

    title: str
    width: int
    height: int
    frame: tuple[float, float, float, float]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    y_label: str = ""
    zero: float | None = None
    lines: list[Polyline] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    log: bool = False


LARGEST = 1e300
"""Values from here on are not drawn, nor those that are not finite."""


@dataclass(frozen=True)
class Series:
    """One curve by name: a list of (step, value) per seed, with nan at a gap."""

    name: str
    parts: Sequence[Points]


def is_drawn(value: float) -> bool:
    """Return whether a value is a number whose distance to another one is a number too."""
    return abs(value) < LARGEST


def round_values(low: float, high: float, count: int = 5) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw * 0.999), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def line_chart(
    title: str, series: Sequence[Series], unit: str = "", over: str = "step", at: Mapping[float, str] | None = None
) -> Chart | None:
    """Draw curves; None if no point is finite.

    Args:
        title: heading.
        series: the curves.
        unit: of their values.
        over: what runs from left to right.
        at: places on that axis with their texts; by default round values.
    """
    points = [point for one in series for part in one.parts for point in part if is_drawn(point[1])]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    log = min(values) > 0 and max(values) / min(values) > LOG_RANGE
    frame = (46.0, 8.0, 352.0, 158.0)
    x = Axis(*_domain(steps, pad=0.0), frame[0], frame[2])
    y = Axis(*_domain(values, log=log), frame[3], frame[1], log, unit)
    lines = [
        Polyline(_path(part, x, y), f"line{index % 6}", one.name, _last(one.parts) if nth == 0 else "")
        for index, one in enumerate(series)
        for nth, part in enumerate(one.parts)
    ]
    zero = y(0.0) if not log and y.low < 0 < y.high else None
    x_ticks = [Tick(x(value), text) for value, text in at.items()] if at else x.ticks(4)
    return Chart(title, 360, 190, frame, x_ticks, y.ticks(4), over, zero=zero, lines=lines, log=log)


def scatter(
    title: str, marks: Sequence[Mark], x_label: str, y_label: str, units: tuple[str, str] = ("", "")
) -> Chart | None:
    """Draw points with their intervals, given in the units of the figures; None if no point has both coordinates."""
    drawn = [mark for mark in marks if is_drawn(mark.x) and is_drawn(mark.y)]
    if not drawn:
        return None
    frame = (64.0, 12.0, 548.0, 296.0)
    across = [value for mark in drawn for value in (mark.x, *_ends(mark.x_ends))]
    up = [value for mark in drawn for value in (mark.y, *_ends(mark.y_ends))]
    x = Axis(*_domain(across, pad=0.12, unit=units[0]), frame[0], frame[2], unit=units[0])
    y = Axis(*_domain(up, pad=0.12, unit=units[1]), frame[3], frame[1], unit=units[1])
    placed = [
        replace(mark, x=x(mark.x), y=y(mark.y), x_ends=_drawn(mark.x_ends, x), y_ends=_drawn(mark.y_ends, y))
        for mark in sorted(drawn, key=lambda mark: not mark.faint)
    ]
    return Chart(title, 560, 350, frame, x.ticks(), y.ticks(), x_label, y_label, marks=placed)


def _domain(values: Sequence[float], pad: float = 0.06, log: bool = False, unit: str = "") -> tuple[float, float]:
    """Return the range of an axis, never empty, and not below 0 for the sake of equal values that are not."""
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.3
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.02 if unit == "share" else 0.5 * abs(high) or 1.0
        return low - room if low < 0 else max(0.0, low - room), high + room
    return low - pad * (high - low), high + pad * (high - low)


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 4))]


def _path(points: Points, x: Axis, y: Axis) -> str:
    """Return an SVG path with a break at every gap; a lone point is a dot (round line ends)."""
    text, pen = [], "M"
    for step, value in _thin(points):
        if not is_drawn(value) or (y.log and value <= 0):
            pen = "M"
            continue
        text.append(f"{pen}{x(step):g} {y(value):g}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(text)


def _thin(points: Points) -> Points:
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[float, float]] = [points[0]]
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [point for point in part if is_drawn(point[1])]
        gap = [point for point in part if not is_drawn(point[1])][:1]
        extremes = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        kept += sorted([*extremes, *gap])
    return [*kept, points[-1]]


def _last(parts: Sequence[Points]) -> str:
    """Return the last finite value of a curve, empty for several seeds."""
    finite = [value for _, value in parts[0] if is_drawn(value)] if len(parts) == 1 else []
    return number(finite[-1]) if finite else ""


def _ends(interval: Interval) -> tuple[float, ...]:
    return tuple(end for end in interval or () if is_drawn(end))


def _drawn(interval: Interval, axis: Axis) -> Interval:
    ends = _ends(interval)
    return (axis(ends[0]), axis(ends[1])) if len(ends) == 2 else None


@dataclass(frozen=True)
class Strip:
    """One subject in a strip: positions in per cent of the width."""

    subject: str
    text: str
    at: float
    low: float
    high: float


def strip(values: Sequence[tuple[str, float, Interval]], unit: str, metric: str) -> list[Strip]:
    """Place the subjects' finite values on one axis from 0 to 100 per cent."""
    drawn = [item for item in values if is_drawn(item[1])]
    if not drawn:
        return []
    every = [value for _, middle, ends in drawn for value in (middle, *_ends(ends))]
    starts_at_zero = unit == "share" and min(every) >= 0
    low, high = _domain([*every, 0.0] if starts_at_zero else every, pad=0.08)
    axis = Axis(0.0 if starts_at_zero else low, high, 0.0, 100.0)
    return [
        Strip(
            subject, figure(middle, unit, metric), axis(middle), *(_drawn(ends, axis) or (axis(middle), axis(middle)))
        )
        for subject, middle, ends in drawn
    ]


def tradeoff(run: RunFolder, measured: Sequence[Measurement]) -> dict[str, Any] | None:
    """Return the forget-utility chart: one point per subject, and faint ones for the single seeds."""
    usable = [row for row in measured if "target" in row.cells]  # where unlearning began is a point of its own
    forget, kept = forget_row(run, usable, with_target=True), kept_row(run, usable, with_target=True)
    if forget is None or kept is None:
        return None
    marks = _subject_marks(forget, kept)
    legend = [(mark.css, cell(forget, mark.css), cell(kept, mark.css)) for mark in marks]
    for seed in run.seeds:
        own = measurements(seed.records)
        pair = [next((row for row in own if row.is_like(head)), None) for head in (forget, kept)]
        if pair[0] and pair[1]:
            marks += _subject_marks(pair[0], pair[1], seed.path.name)
    units = (kept.unit, forget.unit)
    chart = scatter("Forgetting against utility", marks, axis_label(kept), axis_label(forget), units)
    return {"chart": chart, "legend": legend, "x": kept, "y": forget} if chart else None


def _subject_marks(forget: Measurement, kept: Measurement, seed: str = "") -> list[Mark]:
    """Return a point per subject; those of a single seed are faint and have no intervals."""
    marks = []
    for subject in ordered([*forget.cells, *kept.cells]):
        if subject in forget.cells and subject in kept.cells:
            x, y = kept.cells[subject], forget.cells[subject]
            if seed:
                title = f"{subject}, {seed}: {y.value:.4g} / {x.value:.4g}"
                marks.append(Mark(x.value, y.value, subject, title, faint=True))
            else:
                title = f"{subject}: {figure(y.value, y.unit)} / {figure(x.value, x.unit)}"
                marks.append(Mark(x.value, y.value, subject, title, x.ci95, y.ci95))
    return marks


def axis_label(row: Measurement) -> str:
    """Return what an axis shows, its unit, and which end is better."""
    unit = f", {row.unit}" if row.unit not in ("", "share") else ""
    return f"{row.phrase}{unit} ({DIRECTIONS[row.direction]})"


def training_charts(run: RunFolder) -> list[Chart]:
    """Return one small chart per quantity; all losses share one, and so do ``forget/z`` and ``retain/z``."""
    parts = [part.curves for part in run.parts] or [run.curves]
    charts: dict[str, list[Series]] = {}
    for column in dict.fromkeys(column for curves in parts for column in curves):
        chart, name = _chart_and_line(column)
        charts.setdefault(chart, []).append(Series(name, [curves[column] for curves in parts if column in curves]))
    names = sorted(charts, key=lambda name: FIRST_CURVES.index(name) if name in FIRST_CURVES else len(FIRST_CURVES))
    drawn = [line_chart(name.replace("_", " "), charts[name]) for name in names]
    return [chart for chart in drawn if chart is not None]


def _chart_and_line(column: str) -> tuple[str, str]:
    """Return the chart that a column belongs to, and the name of its line."""
    first, _, rest = column.partition("/")
    if first == "loss" and rest:
        return first, rest
    name = column.rpartition("/")[2]
    return name, column.removesuffix(f"/{name}") if "/" in column else name.replace("_", " ")


def strips(run: RunFolder, measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return the tiles under the verdict: the headline figures on forgetting, utility and privacy."""
    membership = next((row for row in measured if row.metric == "membership_auc"), None)
    tiles = (("Forgetting", forget_row(run, measured)), ("Utility", kept_row(run, measured)), ("Privacy", membership))
    return [
        {"head": head, "row": row, "strips": drawn}
        for head, row in tiles
        if row is not None and (drawn := _strips_of(row))
    ]


def _strips_of(row: Measurement) -> list[Strip]:
    shown = [row.cells[subject] for subject in ordered(list(row.cells)) if subject in SUBJECTS]
    return strip([(record.subject, record.value, record.ci95) for record in shown], row.unit, row.metric)
