"""Readable numbers: figures with their units, intervals, durations, sizes."""

import math
from collections.abc import Sequence
from typing import Any

from unlearn.core.records import Record

YES_NO = ("reached",)
"""Metrics whose value 1 or 0 means yes or no."""


def number(value: float) -> str:
    """Return a pure number with about four digits and a true minus sign."""
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
    """Return a value for a table whose heading names the unit."""
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
    """Return a value with its unit, for a sentence."""
    text = figure(value, unit, metric)
    spelled = unit in ("", "share", "s", "bytes", "B") or not math.isfinite(value) or metric in YES_NO
    return text if spelled else f"{text} {unit}"


def interval(record: Record) -> str:
    """Return the 95 % interval, empty if none is known."""
    if record.ci95 is None or not all(map(math.isfinite, record.ci95)):
        return ""
    low, high = (figure(end, record.unit) for end in record.ci95)
    if low.endswith(" %") and high.endswith(" %"):
        low = low.removesuffix(" %")
    return f"{low} to {high}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.2g} s" if abs(seconds) < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def memory(size: float) -> str:
    """Return a size in bytes in decimal units."""
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
