"""Run directories as a run leaves them: real records, real pictures of handwritten digits."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from unlearn.core.files import write_json, write_text
from unlearn.core.records import Direction, Record

MakeRun = Callable[..., Path]
SHARES = {"target": 0.098, "unlearned": 0.009, "retrained": 0.004}
BITS = {"target": 2.001, "unlearned": 2.027, "retrained": 1.994}


def measure(
    metric: str, split: str, values: dict[str, float], half: float, direction: Direction, **more: Any
) -> list[Record]:
    """Return one record a subject, with an interval of +-half."""
    about, unit, n = more.get("about", {}), more.get("unit", ""), more.get("n", 2000)
    evaluator, seed, label = more.get("evaluator", metric), more.get("seed", 0), more.get("label", "")
    return [
        Record(
            evaluator=evaluator, metric=metric, subject=subject, value=value, split=split, about=about, seed=seed,
            ci95=(value - half, value + half) if half else None, n=n, direction=direction, unit=unit, label=label,
        )
        for subject, value in values.items()
    ]  # fmt: skip


def flow_records(seed: int = 0, category: str = "3", shift: float = 0.0) -> list[Record]:
    """Return what the evaluators of a flow recipe report."""
    found: list[Record] = []
    for split, rise in (("forget", 0.9), ("retain", 0.0), ("holdout", 0.95), ("test", 0.14)):
        values = {name: value + rise + shift * (name == "unlearned") for name, value in BITS.items()}
        direction: Direction = "none" if split in ("forget", "holdout") else "lower"
        more = {"unit": "bits/dim", "n": 1297, "seed": seed, "label": "bits per dimension"}
        found += measure("bits_per_dim", split, values, 0.011, direction, **more)
    z = {"target": -0.05, "unlearned": 4.06, "retrained": 1.4}
    found += measure("likelihood_z", "forget", z, 0.2, "higher", evaluator="likelihood_rank", n=146, seed=seed)
    drop = {"unlearned": 0.486, "retrained": 0.21}
    found += measure("quantile_drop", "forget", drop, 0.03, "higher", evaluator="likelihood_rank", n=146, seed=seed)
    found += measure(
        "quantile_drop", "test", {"unlearned": -0.011}, 0.008, "zero", evaluator="likelihood_rank", n=360, seed=seed
    )
    for digit in range(10):
        is_forgotten = str(digit) == category
        values = (
            {n: v + shift / 10 * (n == "unlearned") for n, v in SHARES.items()}
            if is_forgotten
            else dict.fromkeys(SHARES, 0.1)
        )
        about, split = {"category": str(digit)}, "forget" if is_forgotten else "retain"
        direction = "lower" if is_forgotten else "retrained"
        half = 0.005 if is_forgotten else 0.013
        found += measure("sample_share", split, values, half, direction, about=about, unit="share", seed=seed)
    frechet = {"target": 3.1, "unlearned": 4.4, "retrained": 3.0}
    found += measure("frechet_digitnet8", "retain", frechet, 0.0, "lower", evaluator="feature_distance", seed=seed)
    auc = {"target": 0.561, "unlearned": 0.497, "retrained": 0.502}
    found += measure("membership_auc", "forget", auc, 0.04, "retrained", evaluator="membership", n=182, seed=seed)
    found += measure("reached", "", {"unlearned": 1.0}, 0.0, "higher", evaluator="goal", n=1, seed=seed)
    for metric, value, unit in (
        ("cost_seconds", 41.3, "s"),
        ("cost_share", 0.42, "share"),
        ("steps", 300.0, ""),
        ("peak_memory", 6.1e8, "bytes"),
    ):
        found += measure(metric, "", {"unlearned": value}, 0.0, "lower", evaluator="cost", unit=unit, n=1, seed=seed)
    return found


def flow_recipe(title: str, category: str, seed: int) -> dict[str, Any]:
    """Return a resolved recipe."""
    return {
        "about": {"title": title, "method": "likelihood taming, category variant", "needs": "CPU, 1 min, 1 GB"},
        "model": {"name": "glow", "levels": 2, "depth": 6, "width": 48, "pretrained": None},
        "data": {
            "name": "digits",
            "forget": {"label": [category], "without": None, "count": None},
            "retain": {},
            "holdout": {},
        },
        "forget": {"category_taming": {"weight": 0.6, "threshold": 4.0}},
        "retain": {"taming_retain": {"weight": 0.4}},
        "combine": {"name": "sum"},
        "optim": {"lr": 2e-4, "steps": 300, "batch": 64},
        "gate": {
            "share": {"metric": "sample_share", "split": "forget", "max": 0.03},
            "kept": {"metric": "bits_per_dim", "split": "retain", "minus": "retrained", "max": 0.06},
        },
        "seed": [seed],
    }


def picture(rows: int, columns: int, scale: int, offset: int) -> bytes:
    """Return a PNG with a grid of real digits."""
    images = load_digits().images[offset : offset + rows * columns]
    grid = 255 - np.block([[images[row * columns + column] for column in range(columns)] for row in range(rows)]) * 15.9
    file = io.BytesIO()
    Image.fromarray(np.kron(grid, np.ones((scale, scale))).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def curves(seed: int, steps: int = 300) -> str:
    """Return a metrics.csv with gaps: z is logged every fifth row only."""
    noise, file = np.random.default_rng(seed), io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["step", "loss/category_taming", "loss/taming_retain", "cosine", "grad_norm", "lr", "z"])
    for step in range(0, steps, 5):
        forget, retain = math.exp(-step / 60) + 0.05 * noise.random(), 0.4 + 0.03 * noise.standard_normal()
        z = round(4 * (1 - math.exp(-step / 70)), 4) if step % 25 == 0 else ""
        writer.writerow(
            [
                step,
                round(forget, 5),
                round(retain, 5),
                round(0.4 * noise.standard_normal() - 0.2, 4),
                round(3 + noise.random(), 3),
                2e-4 * (1 - step / steps),
                z,
            ]
        )
    return file.getvalue()


def write_run(
    folder: Path,
    records: Sequence[Record] | None = None,
    title: str = "Make a flow forget how to draw one digit",
    category: str = "3",
    seed: int = 0,
    with_pictures: bool = True,
    with_curves: bool = True,
    **changes: Any,
) -> Path:
    """Write a run directory; ``changes`` replace entries of metrics.json or, as ``recipe_*``, of the recipe."""
    (folder / "samples").mkdir(parents=True)
    shown = []
    if with_pictures:
        for index, (name, heading) in enumerate(
            (("target", "Target"), ("unlearned", "Unlearned"), ("retrained", "Retrained"))
        ):
            (folder / "samples" / f"{name}.png").write_bytes(picture(8, 8, 6, 64 * index))
            shown.append({"name": name, "title": heading, "caption": "64 samples from the same noise in every model."})
        (folder / "samples" / "forget.png").write_bytes(picture(1, 12, 4, 300))
        shown.insert(
            0, {"name": "forget", "title": "What was to be forgotten", "caption": "Twelve of the forget items."}
        )
    if with_curves:
        write_text(folder / "metrics.csv", curves(seed))
    recipe = flow_recipe(title, category, seed) | {
        key.removeprefix("recipe_"): value for key, value in changes.items() if key.startswith("recipe_")
    }
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    write_text(
        folder / "command.txt", f"python -m unlearn.run recipe=flow/category_digits data.forget.label={category}\n"
    )
    write_json(
        folder / "environment.json",
        {"python": "3.11.2", "platform": "Linux", "git": {"commit": "abc1234", "dirty": False}},
    )
    facts = {
        "schema": 1, "recipe": "flow/category_digits", "hash": "9f8e7d", "family": "flow", "status": "done",
        "packages": {"torch": "2.13.0", "nflows": "0.14"}, "device": {"type": "cpu", "name": "2 cores"},
        "seconds": {"target": 98.0, "retrained": 95.2, "unlearn": 41.3, "evaluate": 22.8},
        "records": [record.to_dict() for record in (flow_records(seed, category) if records is None else records)],
        "pictures": shown, "state": {"category_taming": {"reached": True}},
    }  # fmt: skip
    facts |= {key: value for key, value in changes.items() if not key.startswith("recipe_")}
    write_json(folder / "metrics.json", facts)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run directory under the test's folder: ``make_run("name", **changes)``."""
    return lambda name="run", **changes: write_run(tmp_path / name, **changes)


@pytest.fixture
def read_strict() -> Callable[[Path], Any]:
    """Parse JSON that has no NaN or Infinity in it."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return lambda path: json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
