"""Charts: positions, ticks, gaps and thinning, all in closed form."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn.report.charts import Axis, Mark, Series, line_chart, round_values, scatter, strip


def test_axis_is_linear_or_logarithmic():
    """Half of [0, 10] on a log axis from 1 to 100 is at 10; the y axis runs downwards."""
    assert [Axis(0, 10, 100, 200)(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert [Axis(1, 100, 200, 100, log=True)(value) for value in (1, 10, 100)] == [200, 150, 100]
    assert [tick.label for tick in Axis(0.01, 1000, 0, 1, log=True).ticks()] == [
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
        "1e+03",
    ]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_even_and_inside(low, width, count):
    values = round_values(low, low + width, count)
    steps = {round((b - a) / (values[1] - values[0]), 6) for a, b in pairwise(values)}
    assert steps <= {1.0} and len(values) <= count + 1
    assert all(low - 1e-6 * width <= value <= low + width + 1e-6 * width for value in values)
    if len(values) > 1:
        assert re.fullmatch(r"[125]\.0+e.*", f"{values[1] - values[0]:.3e}")


@pytest.mark.parametrize(
    ("unit", "high", "labels"),
    [
        ("share", 0.1, ["0 %", "5 %", "10 %"]),
        ("", 0.1, ["0", "0.05", "0.10"]),
        ("", 4e-5, ["0", "2e-05", "4e-05"]),
        ("", 4000, ["0", "2,000", "4,000"]),
    ],
)
def test_tick_labels(unit, high, labels):
    assert [tick.label for tick in Axis(0, high, 0, 1, unit=unit).ticks(2)] == [
        label.replace("-", "−") for label in labels
    ]


def test_gaps_break_the_line_and_a_lone_point_stays_visible():
    """The axis is padded by 6 %, which moves both ends; the path holds two pieces, the second a dot."""
    chart = line_chart("loss", [Series("a", [[(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5)]])])
    assert chart is not None and chart.lines[0].last == "1.500"
    assert re.fullmatch(r"M[\d. ]+h0L[\d. ]+M[\d. ]+h0", chart.lines[0].path)


def test_long_line_is_thinned_but_keeps_its_peak():
    points = [(float(step), 0.0) for step in range(10_000)]
    points[4321] = (4321.0, 5.0)
    chart = line_chart("loss", [Series("a", [points])])
    assert chart is not None and chart.lines[0].path.count("L") < 450
    heights = [float(pair.split()[1]) for pair in re.findall(r"[ML]([\d.]+ [\d.]+)", chart.lines[0].path)]
    assert min(heights) < 30 < max(heights)  # upwards is smaller


def test_wide_positive_range_goes_logarithmic_and_nothing_is_no_chart():
    wide = line_chart("x", [Series("a", [[(0, 1e-4), (1, 1.0)]])])
    narrow = line_chart("x", [Series("a", [[(0, -1e-4), (1, 1.0)]])])
    assert wide is not None and narrow is not None and (wide.log, narrow.log) == (True, False)
    assert narrow.zero is not None and wide.zero is None
    assert line_chart("x", [Series("a", [[(0, math.nan)]])]) is None and line_chart("x", []) is None


def test_constant_line_is_drawn_in_the_middle():
    chart = line_chart("lr", [Series("lr", [[(0, 2e-4), (9, 2e-4)]])])
    assert chart is not None and "83" in chart.lines[0].path  # (8 + 158) / 2


def test_scatter_leaves_undefined_marks_out_and_drops_open_intervals():
    marks = [
        Mark(1, 1, "target", "t", (0.5, 1.5), (math.nan, 2)),
        Mark(math.nan, 1, "unlearned", "u"),
        Mark(3, 2, "retrained", "r"),
    ]
    chart = scatter("t", marks, "x", "y")
    assert chart is not None and [mark.css for mark in chart.marks] == ["target", "retrained"]
    assert chart.marks[0].x_ends is not None and chart.marks[0].y_ends is None
    assert scatter("t", marks[1:2], "x", "y") is None


def test_strip_of_shares_starts_at_zero():
    """Highest end .5 padded by 8 % of .5: the axis is [0, .54], so .27 lies at 50 %."""
    target, other = strip([("target", 0.27, None), ("unlearned", 0.5, None), ("x", math.nan, None)], "share", "m")
    assert (target.at, target.text, other.at) == (50.0, "27.0 %", 92.6)
