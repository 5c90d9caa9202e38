"""Reads and writes checkpoint files; a kill at any moment leaves a complete one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unlearn.core.errors import RecipeError
from unlearn.core.files import write_with

FORMAT = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts atomically."""
    write_with(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state without executing anything in the file. Raises RecipeError if the file is broken."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file can fail in any way inside the unpickler
        raise RecipeError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}). "
            f"Delete it to start this run from its beginning, or type resume= with another run."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RecipeError(f"{path} is no checkpoint of this program (format {FORMAT} is expected).")
    return state
