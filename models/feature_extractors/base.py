"""The interface of the packaged networks behind embedders."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A frozen network with features per layer."""

    @abstractmethod
    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the features (B, D, h, w) of a few layers, of images (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def embed(self, layers: list[Tensor]) -> Tensor:
        """Return the embedding (B, D) that ``layers`` lead to, without computing them again."""
