"""Which step is kept: a limit is met by a figure that is there and defined."""

import math

import pytest

from unlearn.config.schema import Gate
from unlearn.core.records import Record
from unlearn.training.model_selection import _excess


@pytest.mark.parametrize(
    ("value", "wanted"), [(2.0, 0.0), (3.5, 0.5), (math.inf, math.inf), (math.nan, math.nan), (None, math.nan)]
)
def test_an_undefined_figure_misses_the_limit(value: float | None, wanted: float) -> None:
    records = [] if value is None else [Record(evaluator="a", metric="m", subject="unlearned", value=value)]
    found = _excess(Gate(metric="m", max=3.0), records)
    assert found == wanted or (math.isnan(found) and math.isnan(wanted))
