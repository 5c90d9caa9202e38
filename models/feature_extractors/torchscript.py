"""A user's own networks as TorchScript files: reading them, and trying them on blank images before any work."""

import hashlib
import warnings
from collections.abc import Sequence
from functools import cache
from os.path import expanduser
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from unlearn.core.errors import RecipeError

N = TypeVar("N", bound=nn.Module)

BLANK = 2
"""Number of blank images that a network is tried on."""


def metric_name(file: str | Path) -> str:
    """Return a file's name without its ending, as metric names have it: letters and digits, else underscores."""
    return "".join(letter if letter.isalnum() else "_" for letter in Path(file).stem)


def scripted(file: str, what: str) -> tuple[str, torch.jit.ScriptModule]:
    """Return the hash of a TorchScript file and its frozen module; a changed file is read again.

    Args:
        file: its path.
        what: its use, for the error message.

    Raises:
        RecipeError: there is no such file, or it is no TorchScript.
    """
    path = Path(expanduser(file))
    if not path.is_file():
        raise RecipeError(f"No {what} is at {file}: there is no such file.")
    return _scripted(path, path.stat().st_mtime_ns)


@cache
def _scripted(path: Path, changed: int) -> tuple[str, torch.jit.ScriptModule]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # published nets are TorchScript all the same
            network = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise RecipeError(f"{path} is no TorchScript file ({error}).") from error
    for parameter in network.parameters():  # scripted modules have no requires_grad_
        parameter.requires_grad_(False)
    return hashlib.sha256(path.read_bytes()).hexdigest(), network


@cache
def answer(network: torch.jit.ScriptModule, shape: tuple[int, ...], what: str, batches: int = 1) -> tuple[int, ...]:
    """Return the shape of a TorchScript module's output for ``BLANK`` blank images (C, H, W).

    Args:
        network: the module.
        shape: (C, H, W).
        what: its use and path, for the error message.
        batches: number of batches that it takes as arguments.

    Raises:
        RecipeError: it fails on them, or does not return a floating-point tensor.
    """
    images = torch.zeros(BLANK, *shape, dtype=torch.float32, device=_device(network))
    try:
        with torch.no_grad():
            found = network(*[images.clone() for _ in range(batches)])
    except Exception as error:  # a user's code may raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fault = next((line for line in lines if "Error" in line), lines[0] if lines else type(error).__name__)[:300]
    else:
        if isinstance(found, Tensor) and found.is_floating_point():
            return tuple(found.shape)
        fault = f"it gives {found.dtype if isinstance(found, Tensor) else type(found).__name__}, no real numbers"
    raise RecipeError(
        f"The {what} fails on {batches} batch{'es' if batches > 1 else ''} of images {(BLANK, *shape)}: {fault}. "
        "Type another file."
    )


def misfit(what: str, shape: Sequence[int], given: Sequence[int], wanted: str) -> RecipeError:
    """Return the refusal of a module that answers images (C, H, W) in another shape than wanted."""
    asked = f"The {what} maps images {(BLANK, *shape)} to {given}; it must give {wanted}."
    return RecipeError(f"{asked} Type another file.")


def on_device_of(network: N, images: Tensor) -> N:
    """Move the network to the device of the images and return it."""
    return network if _device(network) in (None, images.device) else network.to(images.device)


def _device(network: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*network.buffers(), *network.parameters())), None)
