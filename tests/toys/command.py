"""Runs the command line: in this process, in one of its own, and once per rank."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import ROOT
from unlearn import evaluate as evaluate_door
from unlearn import run as run_door


def environment(cache: Path) -> dict[str, str]:
    """One thread a process, warnings off (they belong to libraries of the child), models cached where the test says."""
    return {
        **os.environ,
        "UNLEARN_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }


def unlearn(*arguments: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Call what ``python -m unlearn.run`` calls, which saves a process its imports (some 8 s)."""
    return _called(run_door.main, arguments, cwd, cache)


def evaluate(*arguments: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Call what ``python -m unlearn.evaluate`` calls."""
    return _called(evaluate_door.main, arguments, cwd, cache)


def _called(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str], cwd: Path, cache: Path
) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "path", [*sys.path])
        for key in ("UNLEARN_CACHE", "COLUMNS"):
            patch.setenv(key, environment(cache)[key])
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def unlearn_in_a_process(*arguments: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m unlearn.run`` with these arguments."""
    return _process("unlearn.run", *arguments, cwd=cwd, cache=cache)


def unlearn_on_two_ranks(*runs: list[str], cwd: Path, cache: Path) -> None:
    """Carry out runs one after another, each on the same two processes."""
    done = _process("tests.toys.command", json.dumps(runs), cwd=cwd, cache=cache)
    assert done.returncode == 0, done.stderr


def _process(module: str, *arguments: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=300,
    )


def kill_after_a_checkpoint(arguments: list[str], folder: Path, cache: Path, seconds: float) -> int:
    """Start a run, kill it without warning some time after its first checkpoint, and return the last one's step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unlearn.run", *arguments],
        cwd=folder,
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (found := list(folder.glob("runs/**/last.ckpt"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(seconds)
    process.kill()
    process.wait()
    return int(torch.load(found[0], weights_only=True)["step"])


def printed_by_ranks(code: str, ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Run code once per rank, with (rank, ranks, file to meet at) as arguments; return the JSON each prints last."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(folder / str(ranks))],
            env=environment(folder),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    return [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in started]


if __name__ == "__main__":
    codes = [run_door.main([*arguments, "trainer.devices=2"]) for arguments in json.loads(sys.argv[1])]
    sys.exit(max(codes))
