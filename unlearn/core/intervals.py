"""Student's t interval, used for values of items and of seeds alike."""

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit


def t_half_width(n: int, deviation: float) -> float:
    """Return t(.975, n - 1) s / sqrt(n) for n >= 2 values with standard deviation s."""
    return float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of at least two values, or None."""
    if len(values) < 2:
        return None
    mean, half = statistics.fmean(values), t_half_width(len(values), statistics.stdev(values))
    return mean - half, mean + half
