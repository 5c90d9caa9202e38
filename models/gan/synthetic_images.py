"""Images that one generator draws of identities, as data for another."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.nn.functional import adaptive_avg_pool2d

from unlearn.core.errors import RecipeError
from unlearn.core.files import data_cache, write_bytes
from unlearn.core.randomness import Randomness
from unlearn.data.identities import IdentityData
from unlearn.data.in_memory import ImagesInMemory
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import latents_of
from unlearn.models.gan.wrapper import LatentGenerator

AT_ONCE = 64
"""Images per forward pass."""


def drawn(dataset: IdentityData, folder: Path, size: int | None) -> ImagesInMemory:
    """Return images of identities as a generator draws them, with constant noise; drawn once and kept in the cache.

    Args:
        dataset: identities and strangers; one given by a picture is inverted first.
        folder: of the generator.
        size: side of the images, which are shrunk by averaging. None takes the generator's side.

    Raises:
        RecipeError: the generator's side is no multiple of ``size``.
    """
    model = LatentGenerator.from_pretrained(folder)
    channels, side, _ = model.image_shape
    size = size or side
    if side % size:
        raise RecipeError(f"model.size is {size}; the images of {folder} have {side} pixels. Type a divisor of {side}.")
    known = dataset.shaped(model.image_shape, model.levels, (model.num_ws, model.w_dim))
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    key = hashlib.sha256(repr((weights, model.truncation, known.fingerprint, size)).encode()).hexdigest()[:16]
    file = data_cache() / f"drawn-{key}.safetensors"
    if not file.is_file():
        images = torch.empty(len(known), channels, size, size, dtype=torch.uint8)
        for ids in torch.arange(len(known)).split(AT_ONCE):
            with torch.no_grad():
                w = latents_of(model, known, ids, Inversion(), Randomness(0, "drawn"))
                images[ids] = model.images(adaptive_avg_pool2d(model.synthesis(w), size))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, save({"images": images}))
    found = ImagesInMemory(load_file(file)["images"], known.labels, known.attributes, model.levels)
    found.is_test = known.is_test
    return found
