"""What a flow recalls of an item: what it draws in the neighbourhood of its latent, and its bits/dim."""

from typing import Protocol

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood
from unlearn.models.likelihood import bits_per_dim
from unlearn.models.recalled import Recalled

TEMPERATURES = (0.1, 0.3)
"""Deviations of the noise that is added to an item's latent, in units of the base distribution's."""


class ImageFlow(HasLikelihood, Protocol):
    """What is asked of a flow; see ``Flow``."""

    levels: int | None

    def dequantise(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return continuous items, (B, *shape)."""

    def encode(self, inputs: Tensor) -> Tensor:
        """Map continuous items to latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents to continuous items."""

    def grey(self, outputs: Tensor) -> Tensor:
        """Return continuous images as grey levels."""


def recall(model: ImageFlow, batch: Batch, randomness: Randomness) -> Recalled:
    """Return what a flow draws at a reduced temperature around the latents of items, and their bits/dim.

    A flow inverts every item exactly, whether it ever saw it or not. What differs is the neighbourhood: around items
    that it holds likely it draws the like of them; where it holds an item unlikely, a small step leads far away.
    """
    if model.levels is None:
        raise RecipeError("The data are vectors, and this asks for images. Give images, or evaluate.NAME=null.")
    z = model.encode(model.dequantise(batch, randomness))
    noise = randomness.child("neighbourhood").normal(batch["id"], tuple(z.shape[1:]), z.dtype)
    images = [model.grey(model.decode(z + temperature * noise)) for temperature in TEMPERATURES]
    levels = tuple(f"temperature {temperature}" for temperature in TEMPERATURES)
    return Recalled(torch.stack(images), bits_per_dim(model, batch, randomness), levels)
