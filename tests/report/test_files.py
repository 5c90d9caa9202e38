"""Files: strict JSON, curves as a killed run leaves them, records as they were."""

import json
import math

import numpy as np
import pytest

from unlearn.core.files import write_json
from unlearn.core.records import Record
from unlearn.report.read_run import read_curves, read_run


def test_json_is_strict(tmp_path, read_strict):
    path = tmp_path / "a.json"
    write_json(
        path, {"a": math.nan, "b": (math.inf, 1), 3: {"c": np.float32(0.5), "d": np.arange(2), "e": path, "f": True}}
    )
    assert read_strict(path) == {"a": None, "b": [None, 1], "3": {"c": 0.5, "d": [0, 1], "e": str(path), "f": True}}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    path.write_text(json.dumps({"a": math.nan}))
    with pytest.raises(ValueError, match="NaN is no JSON"):
        read_strict(path)


def test_records_come_back_as_they_were(make_run):
    more = {"split": "test", "about": {"x": "1"}, "seed": 3, "n": 7, "direction": "zero", "unit": "s", "label": "B"}
    records = [
        Record(evaluator="a", metric="b", subject="unlearned", value=0.1 + 0.2, ci95=(0.1, 0.5), **more),
        Record(evaluator="a", metric="c", subject="target", value=math.nan, ci95=(math.nan, 1.0)),
    ]
    first, second = read_run(make_run(records=records)).records
    assert first == records[0]
    assert math.isnan(second.value) and second.ci95 is None


def test_curves_of_a_killed_run(tmp_path):
    """A later row of a step wins, an empty cell is no point, nan stays as a gap, a torn line loses what it lacks."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n0,1,\n10,2,nan\n5,9,7\n10,3,5\n15,4")
    curves = read_curves(path)
    assert curves["a"] == [(0, 1), (5, 9), (10, 3), (15, 4)] and curves["b"] == [(5, 7), (10, 5)]
    path.write_text("step,a\n0,nan\n1,inf\n")
    assert [math.isnan(value) for _, value in read_curves(path)["a"]] == [True, True]
    assert read_curves(tmp_path / "nothing.csv") == {}
