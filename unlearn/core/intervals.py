"""Student's t interval, used for values of items and of seeds alike."""

import statistics
from collections.abc import Sequence
from math import sqrt

from scipy.special import stdtrit


def t_quantile(freedom: int) -> float:
    """Return the .975 quantile of Student's t with at least one degree of freedom."""
    return float(stdtrit(freedom, 0.975))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of at least two values, or None."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))
    return mean - half, mean + half
