"""Reads and writes GANs: ``config.json``, the generator's weights, and a discriminator where there is one."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from unlearn.core.boundary import described
from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.folders import check_folder
from unlearn.models.base import REMEDY, refuse_not_finite, refuse_other_kinds, stored_weights
from unlearn.models.gan.dcgan import DCGAN
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.stylegan2.generator import Generator, Shape

DISCRIMINATOR = "discriminator.safetensors"
"""Written where the file that the generator came from had one; its group size is in the metadata."""


BACKENDS: dict[str, Callable[[Mapping[str, Any]], Generator | DCGAN]] = {
    "stylegan2": lambda settings: Generator(Shape(**settings)),
    "dcgan": lambda settings: DCGAN(**settings),
}
"""Kind in ``config.json`` -> settings -> generator with fresh weights."""


def write_generator(
    generator: Generator | DCGAN, levels: int, truncation: float, folder: Path, types: Mapping[str, torch.dtype]
) -> None:
    """Write ``model.safetensors``, by the network's own names, and ``config.json`` into an existing folder."""
    if isinstance(generator, Generator):
        kind, settings = "stylegan2", asdict(generator.shape)
    else:
        kind, settings = "dcgan", {name: getattr(generator, name) for name in ("z_dim", "width", "channels")}
    about = {"kind": kind, "settings": settings, "levels": levels, "truncation": truncation}
    (folder / "model.safetensors").write_bytes(save(stored_weights(generator, types)))
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_generator(folder: Path) -> tuple[Generator | DCGAN, int, float]:
    """Return the generator that ``write_generator`` wrote, its number of grey levels and its truncation."""
    check_folder(folder)
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        kind = str(about["kind"])
        if kind not in BACKENDS:
            raise RecipeError(f"{path}: unknown kind {kind!r}. {did_you_mean(kind, BACKENDS)}")
        generator = BACKENDS[kind](about["settings"])
        levels, truncation = int(about["levels"]), float(about["truncation"])
        if levels < 2 or not 0 <= truncation < math.inf:
            raise ValueError(f"levels is {levels}, 2 or more are needed; truncation is {truncation}, it must be >= 0")
    except RecipeError:
        raise
    except Exception as error:  # what is described may be of any kind and size
        raise RecipeError(f"{path} does not describe a generator ({described(error)}). {REMEDY}") from error
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
        refuse_other_kinds(generator, [path])
        if any(value.dtype == torch.float64 for value in weights.values()):
            generator.double()  # load_state_dict would round to the network's type
        generator.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RecipeError(f"{path} cannot be read, or does not fit ({str(error)[:300]}). {REMEDY}") from error
    refuse_not_finite(generator, path)
    return generator, levels, truncation


def read_discriminator(file: Path, shape: Shape) -> Discriminator:
    """Read the discriminator of a generator. Raises RecipeError where the file is broken or does not fit."""
    try:
        with safe_open(file, framework="pt") as content:
            group = int((content.metadata() or {}).get("group", shape.group))
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        discriminator = Discriminator(replace(shape, group=group))
        refuse_other_kinds(discriminator, [file])
        discriminator.load_state_dict(weights)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise RecipeError(
            f"{file} is no discriminator of the generator beside it ({str(error)[:300]}). Copy it again, or remove it, "
            "to begin with a new one."
        ) from error
    refuse_not_finite(discriminator, file)
    return discriminator
