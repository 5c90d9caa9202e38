"""Images that one generator draws of identities, as data for another."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.files import data_cache, write_bytes
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset
from unlearn.data.identities import IdentityData
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import latents_of
from unlearn.models.gan.wrapper import LatentGenerator

AT_ONCE = 64
"""Images per forward pass: a block, drawn as a whole, so that no image depends on what is asked for."""


class DrawnImages(Dataset):
    """Images of identities as a generator draws them, with constant noise: drawn once they are asked for.

    The whole set is kept in the cache as soon as it is drawn.

    Args:
        dataset: identities and strangers; one given by a picture is inverted first.
        folder: of the generator.
        size: side of the images, which are shrunk by averaging. None takes the generator's side.

    Raises:
        RecipeError: the generator's side is no multiple of ``size``.
    """

    def __init__(self, dataset: IdentityData, folder: Path, size: int | None) -> None:
        self.model = model = LatentGenerator.from_pretrained(folder)
        channels, side, _ = model.image_shape
        size = size or side
        if side % size:
            raise RecipeError(
                f"model.size is {size}; the images of {folder} have {side} pixels. Type a divisor of {side}."
            )
        self.known = known = dataset.shaped(model.image_shape, model.levels, (model.num_ws, model.w_dim))
        self.labels, self.attributes, self.is_test = known.labels, known.attributes, known.is_test
        self.info = {"shape": (channels, size, size), "levels": model.levels}
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        made_of = repr((weights, model.truncation, known.fingerprint, size))
        self.fingerprint = hashlib.sha256(made_of.encode()).hexdigest()
        self._file = data_cache() / f"drawn-{self.fingerprint[:16]}.safetensors"
        if self._file.is_file():
            self._images = load_file(self._file)["images"]
            self._missing = torch.zeros(0, dtype=torch.int64)
        else:
            self._images = torch.empty(len(known), channels, size, size, dtype=torch.uint8)
            self._missing = torch.arange(-(-len(known) // AT_ONCE))

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return ``id``, ``image`` (B, C, H, W) uint8 and ``label`` (B,) of the items ``ids``."""
        if len(self._missing):
            self._draw(ids)
        return {"id": ids, "image": self._images[ids], "label": self.label_numbers[ids]}

    @torch.no_grad()
    def _draw(self, ids: Tensor) -> None:
        """Draw the blocks that items are in; write the file with the last one."""
        wanted = torch.isin(self._missing, ids // AT_ONCE)
        for block in self._missing[wanted].tolist():
            own = torch.arange(block * AT_ONCE, min((block + 1) * AT_ONCE, len(self)))
            w = latents_of(self.model, self.known, own, Inversion(), Randomness(0, "drawn"))
            shrunk = adaptive_avg_pool2d(self.model.synthesis(w), self._images.shape[-1])
            self._images[own] = self.model.images(shrunk)
        self._missing = self._missing[~wanted]
        if len(self._missing) == 0:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file, save({"images": self._images}))
