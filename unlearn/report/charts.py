"""Geometry of the report's charts; the template ``charts.html.j2`` draws it as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from unlearn.report.labels import figure, number

Points = Sequence[tuple[float, float]]
Interval = tuple[float, float] | None
MOST_POINTS = 400
"""A longer line is thinned to the lowest and highest point of equal stretches, so that peaks stay."""
LOG_RANGE = 1000.0
"""A positive line that spans more than this factor is drawn on a logarithmic axis."""


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
class Line:
    """A polyline: SVG path, style class, name, and its last value as text."""

    path: str
    css: str
    name: str
    last: str = ""


@dataclass(frozen=True)
class Mark:
    """A point with its intervals, all in drawing units; ``title`` is the text on hovering."""

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
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    log: bool = False


@dataclass(frozen=True)
class Series:
    """One curve by name: one or several (several seeds) lists of (step, value), nan where there is a gap."""

    name: str
    parts: Sequence[Points]


@dataclass(frozen=True)
class Dot:
    """One subject or run in a scatter picture, in the units of the figures."""

    x: float
    y: float
    css: str
    title: str
    x_ci: Interval = None
    y_ci: Interval = None
    faint: bool = False
    label: str = ""


def round_values(low: float, high: float, count: int = 5) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw * 0.999), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], unit: str = "") -> Chart | None:
    """Draw curves over the steps, or nothing where no finite point is left."""
    points = [point for one in series for part in one.parts for point in part if math.isfinite(point[1])]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    log = min(values) > 0 and max(values) / min(values) > LOG_RANGE
    frame = (46.0, 8.0, 352.0, 158.0)
    x = Axis(*_domain(steps, pad=0.0), frame[0], frame[2])
    y = Axis(*_domain(values, log=log), frame[3], frame[1], log, unit)
    lines = [
        Line(_path(part, x, y), f"line{index % 6}", one.name, _last(one.parts) if nth == 0 else "")
        for index, one in enumerate(series)
        for nth, part in enumerate(one.parts)
    ]
    zero = y(0.0) if not log and y.low < 0 < y.high else None
    return Chart(title, 360, 190, frame, x.ticks(4), y.ticks(4), "step", zero=zero, lines=lines, log=log)


def scatter(
    title: str, dots: Sequence[Dot], x_label: str, y_label: str, units: tuple[str, str] = ("", "")
) -> Chart | None:
    """Draw dots with their intervals, or nothing where no dot has both coordinates."""
    drawn = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    if not drawn:
        return None
    frame = (64.0, 12.0, 548.0, 296.0)
    across, up = [v for d in drawn for v in (d.x, *_ends(d.x_ci))], [v for d in drawn for v in (d.y, *_ends(d.y_ci))]
    x = Axis(*_domain(across, pad=0.12, unit=units[0]), frame[0], frame[2], unit=units[0])
    y = Axis(*_domain(up, pad=0.12, unit=units[1]), frame[3], frame[1], unit=units[1])
    marks = [
        Mark(x(d.x), y(d.y), d.css, d.title, _drawn(d.x_ci, x), _drawn(d.y_ci, y), d.faint, d.label)
        for d in sorted(drawn, key=lambda dot: not dot.faint)
    ]
    return Chart(title, 560, 350, frame, x.ticks(), y.ticks(), x_label, y_label, marks=marks)


def _domain(values: Sequence[float], pad: float = 0.06, log: bool = False, unit: str = "") -> tuple[float, float]:
    """Return the range of an axis, never empty."""
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.3
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.02 if unit == "share" else 0.5 * abs(high) or 1.0
        return low - room, high + room
    return low - pad * (high - low), high + pad * (high - low)


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 4))]


def _path(points: Points, x: Axis, y: Axis) -> str:
    """Return an SVG path with a break at every gap; a lone point is a dot (round line ends)."""
    text, pen = [], "M"
    for step, value in _thin(points):
        if not math.isfinite(value) or (y.log and value <= 0):
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
        finite = [point for point in part if math.isfinite(point[1])]
        gap = [point for point in part if not math.isfinite(point[1])][:1]
        extremes = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        kept += sorted([*extremes, *gap])
    return [*kept, points[-1]]


def _last(parts: Sequence[Points]) -> str:
    """Return the last finite value of a curve, nothing where there are several seeds."""
    finite = [value for _, value in parts[0] if math.isfinite(value)] if len(parts) == 1 else []
    return number(finite[-1]) if finite else ""


def _ends(interval: Interval) -> tuple[float, ...]:
    return tuple(end for end in interval or () if math.isfinite(end))


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
    """Place the subjects' finite values side by side on one axis from 0 to 100 per cent."""
    drawn = [item for item in values if math.isfinite(item[1])]
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
