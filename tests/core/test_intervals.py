"""The t interval against a closed form, and how often it holds the mean."""

import pytest
from scipy import stats

from unlearn.core.intervals import t_interval


def test_interval_of_three_values():
    """(0, 1, 2): mean 1, standard deviation 1, t(.975, 2) = 4.3027, so the half-width is 4.3027 / sqrt(3) = 2.4841."""
    low, high = t_interval([0.0, 1.0, 2.0])
    assert (low + high) / 2 == pytest.approx(1.0) and (high - low) / 2 == pytest.approx(2.4841, abs=1e-4)
    assert t_interval([1.0]) is None is t_interval([])
    assert t_interval([3.0, 3.0]) == (3.0, 3.0)


def test_interval_covers_what_it_promises():
    """Of 2,000 samples of 4 normal numbers, 95 % of the intervals hold the mean; a normal interval would hold 85 %."""
    draws = stats.norm.rvs(size=(2000, 4), random_state=0)
    intervals = [t_interval(row) for row in draws.tolist()]
    assert 0.935 < sum(low < 0 < high for low, high in intervals) / 2000 < 0.965
    shrunk = [
        (low * 1.96 / 3.1824, high * 1.96 / 3.1824)
        for low, high in [(low - (low + high) / 2, high - (low + high) / 2) for low, high in intervals]
    ]
    held = sum(low < -sum(row) / 4 < high for (low, high), row in zip(shrunk, draws.tolist(), strict=True)) / 2000
    assert held < 0.90
