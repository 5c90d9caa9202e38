"""Runs the real command line in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(cache: Path) -> dict[str, str]:
    """One thread a process, warnings off (they belong to libraries of the child), models cached where the test says."""
    return {
        **os.environ,
        "UNLEARN_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }


def unlearn(*arguments: str, cwd: Path, cache: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``python -m unlearn.run`` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "unlearn.run", *arguments],
        cwd=cwd,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
