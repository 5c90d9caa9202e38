"""Whether two run directories hold the same figures: ``python -m tests.acceptance.same_figures BEFORE AFTER [...]``.

BEFORE and AFTER are run directories of one recipe, or folders of them with the same names. Records are matched by
evaluator, metric, subject, split and what they are about; seconds and memory are left out. The exit code is 1 where a
record is missing or its value or interval differs by more than the tolerance (``--tolerance 1e-6``, by default 0).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MEASURED = ("cost_seconds", "peak_memory", "sampling_seconds", "cost_share")
"""Metrics of time and memory, which no two runs share."""


def records(folder: Path) -> dict[str, tuple[float, ...]]:
    """Return (value, interval, n) of every record of a run."""
    rows: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text())["records"]
    kept = [row for row in rows if not row["metric"].startswith(MEASURED) and "second" not in row["unit"]]
    keys = ("evaluator", "metric", "subject", "split", "about", "seed")
    return {
        json.dumps([row[key] for key in keys], sort_keys=True): (row["value"], *(row["ci95"] or ()), row["n"] or 0)
        for row in kept
    }


def differences(before: Path, after: Path, tolerance: float) -> list[str]:
    """Return a line for each record that is missing or differs."""
    old, new = records(before), records(after)
    lost = [f"only in one: {key}" for key in sorted(old.keys() ^ new.keys())]
    moved = [
        f"{key}: {old[key]} -> {new[key]}"
        for key in sorted(old.keys() & new.keys())
        if len(old[key]) != len(new[key])
        or any(abs(a - b) > tolerance and not (a != a and b != b) for a, b in zip(old[key], new[key], strict=True))
    ]
    print(f"{before.name}: {len(old)} records, {len(lost)} missing, {len(moved)} differ by more than {tolerance:g}")
    return lost + moved


def main(arguments: list[str]) -> int:
    """Compare, and print what differs."""
    tolerance = 0.0
    if "--tolerance" in arguments:
        at = arguments.index("--tolerance")
        tolerance = float(arguments[at + 1])
        del arguments[at : at + 2]
    before, after = map(Path, arguments)
    names = (
        [Path()]
        if (before / "metrics.json").is_file()
        else sorted(path.parent.relative_to(before) for path in before.glob("*/metrics.json"))
    )
    found = [line for name in names for line in differences(before / name, after / name, tolerance)]
    print("\n".join(found))
    return 1 if found or not names else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
