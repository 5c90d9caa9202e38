"""Weights quantised by TensorFlow.js, as ``unlearn.experiment.convert_tensorflow_js`` stores them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def stored_values(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a folder's ``weights_*.safetensors`` by name, float32.

    A weight is scale * code + least, computed in float64 as TensorFlow.js does. ``name#range`` holds (scale, least); it
    is absent where ``name`` holds the values themselves.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("weights_*.safetensors")):
        tensors |= load_file(path)
    found = {}
    for name, codes in tensors.items():
        if f"{name}#range" in tensors:
            scale, least = tensors[f"{name}#range"].tolist()
            found[name] = (codes.double() * scale + least).float()
        elif not name.endswith("#range"):
            found[name] = codes.float()
    return found
