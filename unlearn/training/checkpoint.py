"""Reads and writes checkpoint files; a kill at any moment leaves a complete one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn.core.boundary import described
from unlearn.core.errors import RecipeError, UnlearnError, is_of_the_machine, some
from unlearn.core.files import write_with

FORMAT = 2
WEIGHTS = ("parameters", "average", "networks")
"""Entries of a checkpoint that are weights, every value of which is finite."""
NUMBERS = ("buffers", "optimizers", "callbacks")
"""Entries that may hold infinity (a mask), but no nan."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts atomically."""
    write_with(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state without executing anything in the file.

    Raises:
        RecipeError: the file is broken, or holds weights that are not finite.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file can fail in any way inside the unpickler
        raise RecipeError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}). "
            f"Delete it to start this run from its beginning, or type resume= with another run."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RecipeError(f"{path} is no checkpoint of this program (format {FORMAT} is expected).")
    with restoring(path):
        every = {key: dict(_tensors(key, state.get(key))) for key in (*WEIGHTS, *NUMBERS)}
    broken = [name for key in WEIGHTS for name, value in every[key].items() if not value.isfinite().all()]
    broken += [name for key in NUMBERS for name, value in every[key].items() if value.isnan().any()]
    if broken:
        raise RecipeError(
            f"The checkpoint {path} holds weights that are not finite, in {some(broken)}. "
            "Delete it to start this run from its beginning, or type resume= with another run."
        )
    return state


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of floats below a value, with its dotted name."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}.{index}", item)


@torch.no_grad()
def copy_stored(name: str, value: Tensor, place: Tensor) -> None:
    """Copy a tensor of a checkpoint into its place, whose shape and kind of numbers it must have.

    One of another shape would be spread over it, and one of a wider type may be too large for it.

    Raises:
        RecipeError: a finite value is infinite in the place's type.
        ValueError: the shape or kind differs; see ``restoring``.
    """
    if value.shape != place.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)} where the model has {tuple(place.shape)}")
    if value.is_floating_point() != place.is_floating_point():
        raise ValueError(f"{name} is of {value.dtype} where the model has {place.dtype}")
    place.copy_(value)
    if not torch.equal(place.isfinite(), value.isfinite().to(place.device)):
        raise RecipeError(
            f"The checkpoint of the run holds weights that are not finite in {place.dtype}, in {name}. "
            "Delete it to start this run from its beginning, or type resume= with another run."
        )


@contextmanager
def restoring(path: Path | str) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint's content is put to use into a RecipeError."""
    try:
        yield
    except UnlearnError:
        raise
    except Exception as error:  # the content may be of any kind
        if isinstance(error, MemoryError) or is_of_the_machine(error):
            raise
        raise RecipeError(
            f"The checkpoint {path} does not fit this run ({described(error)}); was its code changed? "
            "Start the recipe anew."
        ) from error
