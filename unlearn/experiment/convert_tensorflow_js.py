"""Converts a TensorFlow.js model's weights to safetensors: a maintainers' command, which made two packaged nets.

The manifest (JSON) lists name, shape, type and quantisation of every weight, in the order of their bytes in the binary
file.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unlearn.core.errors import RecipeError

TYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float16": torch.float16, "float32": torch.float32}
LARGEST = 4_500_000
"""Bytes of weights per file."""


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight as TensorFlow.js stores it: value = scale * code + least.

    Args:
        codes: integers, or the values themselves as floats.
        scale: of a code.
        least: value of code 0.
    """

    codes: Tensor
    scale: float = 1.0
    least: float = 0.0


def read_weights(manifest: Path, binary: Path) -> dict[str, QuantisedWeight]:
    """Return the stored weights by name.

    Raises:
        RecipeError: a type is unknown, or the file is not as long as the manifest says.
    """
    content: Any = json.loads(manifest.read_text(encoding="utf-8"))
    groups = content if isinstance(content, list) else content["weightsManifest"]
    data, place, found = binary.read_bytes(), 0, {}
    for entry in (entry for group in groups for entry in group["weights"]):
        quantised = entry.get("quantization", {})
        kind = quantised.get("dtype", entry["dtype"])
        size = math.prod(entry["shape"])
        width = 4 if kind == "int32" else torch.empty(0, dtype=_type(kind, entry["name"])).element_size()
        part = data[place : place + size * width]
        place += size * width
        if kind == "int32":  # shapes of reshapes: nothing that was learnt
            continue
        if len(part) < size * width:
            break
        codes = torch.frombuffer(bytearray(part), dtype=TYPES[kind]).view(entry["shape"])
        found[entry["name"]] = QuantisedWeight(codes, quantised.get("scale", 1.0), quantised.get("min", 0.0))
    if place != len(data):
        raise RecipeError(f"{binary} holds {len(data)} bytes; {manifest} speaks of {place}.")
    return found


def _type(kind: str, name: str) -> torch.dtype:
    if kind not in TYPES:
        raise RecipeError(f"the weight {name} is of type {kind!r}; known are {', '.join(TYPES)} and int32.")
    return TYPES[kind]


def write_weights(weights: Mapping[str, QuantisedWeight], folder: Path) -> list[Path]:
    """Write weights as safetensors files of at most 4.5 MB, ``weights_1.safetensors`` and so on; return the files.

    Beside the codes of ``name`` there is ``name#range``, (scale, least) in float64, unless they are floats.
    """
    files: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, stored in weights.items():
        size = stored.codes.nbytes
        if used and used + size > LARGEST:
            files.append({})
            used = 0
        used += size
        files[-1][name] = stored.codes.contiguous()
        if not stored.codes.is_floating_point():
            files[-1][f"{name}#range"] = torch.tensor([stored.scale, stored.least], dtype=torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"weights_{number}.safetensors" for number in range(1, len(files) + 1)]
    for path, tensors in zip(paths, files, strict=True):
        save_file(tensors, path)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Turn a manifest and its binary file into safetensors files."""
    parser = argparse.ArgumentParser(prog="python -m unlearn.experiment.convert_tensorflow_js", description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("binary", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="beginning of the names to keep, several parted by commas")
    given = parser.parse_args(arguments)
    kept = tuple(given.only.split(","))
    weights = {
        name: stored for name, stored in read_weights(given.manifest, given.binary).items() if name.startswith(kept)
    }
    for path in write_weights(weights, given.folder):
        print(path)


if __name__ == "__main__":
    main()
