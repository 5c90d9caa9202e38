"""Checkpoints that a kill at any moment cannot break."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from unlearn.errors import RecipeError

FORMAT = 1


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts atomically."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state; nothing in the file is executed. Raises RecipeError where it is broken."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise RecipeError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}). "
            f"Delete it to start this run from its beginning, or type resume= with another run."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RecipeError(f"{path} is no checkpoint of this program (format {FORMAT} is expected).")
    return state
