"""What the checks share: the command line, a run's figures, and a figure held against its bound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Check:
    """Prints a figure with its bound, and remembers whether all were met."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def __call__(self, what: str, value: float, least: float | None = None, most: float | None = None) -> None:
        met = (least is None or value >= least) and (most is None or value <= most)
        bound = " and ".join(
            part
            for part in (f">= {least:.4g}" if least is not None else "", f"<= {most:.4g}" if most is not None else "")
            if part
        )
        print(f"  {'ok  ' if met else 'MISS'} {what:<58} {value:9.4f}  {bound}", flush=True)
        if not met:
            self.missed.append(what)


def study(folder: Path, name: str) -> None:
    """Run a study into a folder of its name."""
    done = subprocess.run([sys.executable, "-m", "unlearn.study", name, f"output={name}"], cwd=folder)
    if done.returncode:
        raise SystemExit(f"unlearn.study {name} failed with {done.returncode}")


def run(*arguments: str, cwd: Path) -> Path:
    """Run the command line and return the run directory."""
    done = subprocess.run([sys.executable, "-m", "unlearn.run", *arguments], cwd=cwd, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stderr}")
    output = next((a.partition("=")[2] for a in arguments if a.startswith("output=")), "")
    return cwd / output


def figure(folder: Path, metric: str, subject: str = "unlearned", split: str | None = None, **about: str) -> float:
    """Return one figure of a run."""
    for record in json.loads((folder / "metrics.json").read_text())["records"]:
        if (record["metric"], record["subject"]) == (metric, subject) and split in (None, record["split"]):
            if all(record["about"].get(key) == value for key, value in about.items()):
                return float(record["value"])
    raise SystemExit(f"{folder}: no {metric} of {subject} on {split} {about}")


def difference(folder: Path, metric: str, split: str) -> float:
    """Return unlearned minus target."""
    return figure(folder, metric, split=split) - figure(folder, metric, "target", split=split)


def splits(folder: Path) -> dict[str, list[int]]:
    """Return the ids of each split."""
    return json.loads((folder / "splits.json").read_text())  # type: ignore[no-any-return]


def recipe(folder: Path) -> dict[str, Any]:
    """Return the resolved recipe of a run."""
    from unlearn.config.recipe import load

    return load(folder / "recipe.yaml").tree
