"""Summary over the parts of a run: mean and 95 % interval over seeds, or the figures of each size or request."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn.core.files import write_json
from unlearn.core.intervals import t_interval
from unlearn.core.records import Record
from unlearn.report.formatting import YES_NO
from unlearn.report.page import build_report
from unlearn.report.read_run import RunFolder, read_run
from unlearn.report.table import MeasurementKey, key

OVER_SEEDS = -1
"""Value of ``Record.seed`` for a figure over all seeds."""


def summarise(records_by_seed: Sequence[Sequence[Record]]) -> list[Record]:
    """Return the mean over seeds of every figure, with Student's t interval; ``n`` is the number of seeds behind it.

    Figures are the same where evaluator, metric, subject, split and about agree. Seeds whose value is undefined are
    left out, and so ``n`` is then smaller than the number of seeds; without any, the value is nan and n is 0.
    """
    found: dict[tuple[MeasurementKey, str], list[Record]] = {}
    for records in records_by_seed:
        for record in records:
            found.setdefault((key(record), record.subject), []).append(record)
    return [_summary(same) for same in found.values()]


def _summary(same: Sequence[Record]) -> Record:
    first = same[0]
    values = [record.value for record in same if math.isfinite(record.value)]
    return replace(
        first,
        value=statistics.fmean(values) if values else math.nan,
        seed=OVER_SEEDS,
        ci95=None if first.metric in YES_NO else t_interval(values),
        n=len(values),
    )


def write_summary(folder: Path, part_folders: Sequence[Path], over: str = "seeds") -> list[Record]:
    """Write ``metrics.json`` and ``report.html`` of the folder that holds the parts' run directories.

    Args:
        folder: where they are written.
        part_folders: the run directories of the parts.
        over: what the parts differ in: seeds, sizes or requests. The records of the latter tell themselves apart.

    Raises:
        RecipeError: a part's run directory lacks its metrics or its recipe.
    """
    parts = [read_run(path) for path in part_folders]
    by_part = [part.records for part in parts]
    records = summarise(by_part) if over == "seeds" else [record for part in by_part for record in part]
    write_json(folder / "metrics.json", _contents(parts, records, over))
    build_report(folder)
    return records


def _contents(parts: Sequence[RunFolder], records: Sequence[Record], over: str) -> dict[str, Any]:
    return {
        "schema": 1,
        **{name: _common(parts, name) for name in ("recipe", "hash", "family", "packages", "device")},
        "status": next((part.status for part in parts if part.status != "done"), "done"),
        "over": over,
        "seeds": list(dict.fromkeys(_seed(part) for part in parts)),
        "part_folders": [part.path.name for part in parts],
        "seconds": _total([part.fact("seconds") for part in parts]),
        "records": [record.to_dict() for record in records],
        "notes": list(dict.fromkeys(note for part in parts for note in part.notes)),
    }


def _common(parts: Sequence[RunFolder], name: str) -> Any:
    """Return a fact where it is the same for all parts, else None."""
    values = [part.facts.get(name) for part in parts]
    return values[0] if values and all(value == values[0] for value in values) else None


def _seed(run: RunFolder) -> int:
    """Return the seed of a run: what its recipe says, or what its records carry."""
    value = run.recipe.get("seed")
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value if isinstance(value, int) else next((record.seed for record in run.records), 0)


def _total(seconds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each stage, summed over parts."""
    stages = dict.fromkeys(stage for one in seconds for stage in one)
    return {stage: sum(float(one.get(stage) or 0.0) for one in seconds) for stage in stages}
