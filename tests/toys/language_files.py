"""What a run leaves, read by its tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.toys import ROOT

SMALL = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small_language.yaml'}"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def last(run: Path) -> dict[str, Any]:
    """The state of the last step, in the precision of the steps."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return state


def gap(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name].detach() - second[name].detach()).abs().max()) for name in first)


def figures(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "metrics.json").read_text())["records"]
    return found


def figure(run: Path, metric: str, subject: str, split: str) -> float:
    (value,) = [r["value"] for r in figures(run) if (r["metric"], r["subject"], r["split"]) == (metric, subject, split)]
    return float(value)
