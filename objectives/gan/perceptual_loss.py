"""A weighted sum of the distances of pixels, generator features, perceptual features and identity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearn.core.validation import NonNegativeFloat, check_ranges
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.feature_extractors.embedders import Embedder, Perceptual, identity_net, perceptual_net

GREY_LEVEL = 2 / 255
"""Of 8-bit images in [-1, 1]."""
Shapes = list[list[int]]
"""Of what is kept of one image, in the order of ``Seen.parts``."""


@dataclass(frozen=True)
class Seen:
    """What is compared of B images.

    Args:
        images: (B, C, H, W) in [-1, 1].
        parts: the generator's last features, the perceptual features per layer and the embedding, each (B, ...);
            without those that have no weight.
    """

    images: Tensor
    parts: list[Tensor]

    def pack(self) -> Tensor:
        """Return everything in one row per image, (B, P)."""
        return torch.cat([part.flatten(1).to(self.images.dtype) for part in (self.images, *self.parts)], dim=1)

    @classmethod
    def cat(cls, several: Sequence[Seen]) -> Seen:
        """Return the images of several, one behind the other."""
        parts = zip(*(seen.parts for seen in several), strict=True)
        return cls(torch.cat([seen.images for seen in several]), [torch.cat(part) for part in parts])

    @property
    def shapes(self) -> Shapes:
        """Return the shapes that ``unpack`` asks for."""
        return [list(part.shape[1:]) for part in (self.images, *self.parts)]


def unpack(rows: Tensor, shapes: Shapes) -> Seen:
    """Return what ``Seen.pack`` put into rows (B, P)."""
    pieces = rows.split([math.prod(shape) for shape in shapes], dim=1)
    images, *parts = (piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True))
    return Seen(images, parts)


@dataclass(frozen=True, kw_only=True)
class PerceptualLoss:
    """Weights of the distances between two images and between the features that they were made of.

    The defaults of the last three are GUIDE's. Where the embedder and the perceptual distance are one net, it
    sees an image once.

    Args:
        pixels: of the mean absolute (``l1``) or squared (``l2``) difference of pixels. The absolute one is quadratic
            within a grey level (Huber's), so that images that are equal up to rounding have nearly no gradient.
        norm: which of the two.
        features: of the mean squared difference of the generators' last features.
        perceptual: of the perceptual distance.
        identity: of the embedder's distance.
        perceptual_net: packaged net, or path (feature_extractors.embedders); null takes the one that fits.
        identity_net: the same.
    """

    pixels: NonNegativeFloat = 0.0
    norm: Literal["l1", "l2"] = "l1"
    features: NonNegativeFloat = 0.01
    perceptual: NonNegativeFloat = 1.0
    identity: NonNegativeFloat = 0.1
    perceptual_net: str | None = None
    identity_net: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if not (self.pixels or self.features or self.perceptual or self.identity):
            raise ValueError("pixels, features, perceptual and identity are all 0; one of them must be above")

    def check(self, info: Mapping[str, Any]) -> None:
        """Refuse nets that do not take the images that ``info`` describes, where it says how large they are."""
        if "shape" in info:
            self._nets(info["shape"])

    def seen(self, model: ImageGenerator, w: Tensor) -> Seen:
        """Return what is compared of the images of latents, from one forward pass of the generator and of each net."""
        images, features = model.both(w)
        return self.of_images(images, features)

    def of_images(self, images: Tensor, features: Tensor | None = None) -> Seen:
        """Return what is compared of images (B, C, H, W); ``features`` where they have weight."""
        looks, embedder = self._nets(images.shape[1:])
        parts: list[Tensor] = []
        if self.features:
            if features is None:
                raise ValueError("features have a weight, and none are given")
            parts.append(features)
        net = None if embedder is None else embedder.network
        if looks is not None and looks.network is net and hasattr(net, "layers"):  # one net sees an image once
            layers = net.layers(images.float())
            return Seen(images, [*parts, *looks.of_layers(layers), net.embed(layers)])
        if looks is not None:
            parts += looks.features(images)
        if embedder is not None:
            parts.append(embedder(images))
        return Seen(images, parts)

    def between(self, a: Seen, b: Seen) -> Tensor:
        """Return the weighted sum of the distances, (B,)."""
        looks, embedder = self._nets(a.images.shape[1:])
        difference = a.images - b.images
        total = difference.new_zeros(len(difference))
        if self.pixels:
            if self.norm == "l1":
                each = F.smooth_l1_loss(a.images, b.images, reduction="none", beta=GREY_LEVEL)
            else:
                each = difference.square()
            total = total + self.pixels * each.flatten(1).mean(dim=1)
        mine, theirs = list(a.parts), list(b.parts)  # features first, embedding last, perceptual layers between
        if self.features:
            total = total + self.features * (mine.pop(0) - theirs.pop(0)).square().flatten(1).mean(dim=1)
        if embedder is not None:
            total = total + self.identity * embedder.distance(mine.pop(), theirs.pop())
        if looks is not None:
            total = total + self.perceptual * looks.between(mine, theirs)
        return total

    def _nets(self, shape: Sequence[int]) -> tuple[Perceptual | None, Embedder | None]:
        looks = perceptual_net(self.perceptual_net, shape) if self.perceptual else None
        embedder = identity_net(self.identity_net, shape) if self.identity else None
        return looks, embedder
