"""The engine: quick start, start-up time, runs that are killed and resumed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from tests.acceptance.figures import Check, run
from tests.toys import ROOT

SMALL = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}"


def demo(check: Check, folder: Path) -> None:
    """The quick start, from the shipped models."""
    began = time.monotonic()
    run("recipe=quickstart", "output=demo", cwd=folder)
    check("quick start, seconds", time.monotonic() - began, most=90)


def kills(check: Check, folder: Path) -> None:
    """kill -9 at 20 random moments of a run of about 10 seconds, then resume=auto."""
    settings = [SMALL, "optim.steps=150"]
    run(*settings, "output=first", cwd=folder)  # trains what is cached
    began = time.monotonic()
    whole = load_file(run(*settings, "output=whole", cwd=folder) / "model" / "model.safetensors")
    length = time.monotonic() - began
    same = midway = 0
    chance = random.Random(0)
    for number in range(20):
        place = folder / f"killed-{number}"
        place.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "unlearn.run", *settings],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(1, length))
        process.kill()
        process.wait()
        reports = len(list(place.glob("runs/**/report.html")))
        midway += reports == 0 and len(list(place.glob("runs/**/last.ckpt")))
        run(*settings, "resume=auto", cwd=place)
        found = load_file(next(place.glob("runs/**/report.html")).parent / "model" / "model.safetensors")
        same += all(torch.equal(value, found[name]) for name, value in whole.items())
    check("kills between the first checkpoint and the report", midway, least=5)
    check(f"killed runs (of {length:.0f} s) that end in the same weights", same, least=20)


def start(check: Check, folder: Path) -> None:
    """Help and listing against an empty Python."""

    def seconds(*arguments: str) -> float:
        times = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        return median(times)

    bound = 5 * seconds("-c", "pass") + 0.2
    check("seconds of --help", seconds("-m", "unlearn.run", "--help"), most=bound)
    check("seconds of the listing", seconds("-m", "unlearn.run"), most=bound)
