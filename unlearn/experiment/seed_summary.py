"""Summary over the seeds of a recipe: mean and 95 % interval of every figure."""

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


def write_summary(folder: Path, seed_folders: Sequence[Path]) -> list[Record]:
    """Write ``metrics.json`` and ``report.html`` of the folder that holds the seeds' run directories.

    Raises RecipeError where a seed's run directory lacks its metrics or its recipe.
    """
    seeds = [read_run(path) for path in seed_folders]
    records = summarise([seed.records for seed in seeds])
    write_json(folder / "metrics.json", _contents(seeds, records))
    build_report(folder)
    return records


def _contents(seeds: Sequence[RunFolder], records: Sequence[Record]) -> dict[str, Any]:
    return {
        "schema": 1,
        **{name: _common(seeds, name) for name in ("recipe", "hash", "family", "packages", "device")},
        "status": next((seed.status for seed in seeds if seed.status != "done"), "done"),
        "seeds": [_seed(seed) for seed in seeds],
        "seed_folders": [seed.path.name for seed in seeds],
        "seconds": _total([seed.fact("seconds") for seed in seeds]),
        "records": [record.to_dict() for record in records],
        "notes": list(dict.fromkeys(note for seed in seeds for note in seed.notes)),
    }


def _common(seeds: Sequence[RunFolder], name: str) -> Any:
    """Return a fact where it is the same for all seeds, else None."""
    values = [seed.facts.get(name) for seed in seeds]
    return values[0] if values and all(value == values[0] for value in values) else None


def _seed(run: RunFolder) -> int:
    """Return the seed of a run: what its recipe says, or what its records carry."""
    value = run.recipe.get("seed")
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value if isinstance(value, int) else next((record.seed for record in run.records), 0)


def _total(seconds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each stage, summed over seeds."""
    stages = dict.fromkeys(stage for one in seconds for stage in one)
    return {stage: sum(float(one.get(stage) or 0.0) for one in seconds) for stage in stages}
