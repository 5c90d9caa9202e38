"""What the networks that look at images share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Detector:
    """A net whose figures go into records.

    Attributes:
        name: in metric names, or in ``about.features`` of records.
        sha256: of the files that it was read from; empty for one in training.
    """

    name: str
    sha256: str

    @property
    def detector(self) -> dict[str, str]:
        """Return the description of the net for records."""
        return {"name": self.name, "sha256": self.sha256}


class Network(nn.Module, ABC):
    """A frozen network with features per layer."""

    @abstractmethod
    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the features (B, D, h, w) of a few layers, of images (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def embed(self, layers: list[Tensor]) -> Tensor:
        """Return the embedding (B, D) that ``layers`` lead to, without computing them again."""


def in_colour(images: Tensor) -> Tensor:
    """Return grey images (B, 1, H, W) with three equal channels, others as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
