"""What the engine asks of a model: a small core, and capabilities by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from unlearn.data.base import Batch
from unlearn.errors import RecipeError
from unlearn.randomness import Randomness


class Wrapper(nn.Module, ABC):
    """A trained generator of one backend. Subclasses add capabilities: the protocols below.

    Attributes:
        family: flow, gan, diffusion or language.
    """

    family: ClassVar[str]

    @abstractmethod
    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write weights and configuration in the family's own format into an existing folder.

        Args:
            folder: where to.
            dtype: float type of the stored weights, by default the model's own.
        """

    @classmethod
    @abstractmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what ``save_pretrained`` wrote. Raises RecipeError where a file is missing or wrong."""

    def check_fits(self, info: dict[str, Any]) -> None:
        """Refuse data described by ``info`` that the model was not built for, with a RecipeError."""

    @classmethod
    def adopt(cls, model: Any, info: dict[str, Any]) -> Self:
        """Wrap a user's own model in memory, for data described by ``info``; a backend that can overrides this."""
        raise RecipeError(f"{cls.__name__} cannot wrap a {type(model).__name__}. Give a {cls.__name__}, or a folder.")


@dataclass
class ModelConfig(ABC):
    """Everything that shapes a model before training. One subclass beside each wrapper.

    Args:
        pretrained: folder or hub id of the target model; by default the recipe trains it (or takes the copy
            that ships, or the cached one).
        retrained: folder of a model that never saw the forget data; by default the recipe trains it, unless
            ``pretrained`` is given.
        train: train the target and the retrained model anew, whatever ships or is cached.
    """

    pretrained: str | None = None
    retrained: str | None = None
    train: bool = False

    wrapper: ClassVar[type[Wrapper]]

    def load(self, folder: Path) -> Wrapper:
        """Read a trained model; what the folder says of its shape counts, not this configuration."""
        return self.wrapper.from_pretrained(folder)

    @abstractmethod
    def build(self, info: dict[str, Any], randomness: Randomness) -> Wrapper:
        """Build the untrained model for data described by ``info`` (see Dataset.info)."""


@runtime_checkable
class Trains(Protocol):
    """Has a training loss."""

    def training_loss(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the loss an item, (B,), in the unit that the wrapper states."""


@runtime_checkable
class HasLikelihood(Protocol):
    """Gives the likelihood of an item."""

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return log p(x) an item, (B,), in nats; noise for dequantisation comes from ``randomness``."""

    def dimensions(self, batch: Batch) -> Tensor:
        """Return the number of dimensions (values, tokens) an item, (B,); bits/dim divides by it."""


@runtime_checkable
class Samples(Protocol):
    """Draws samples."""

    def sample(self, ids: Tensor, randomness: Randomness) -> Batch:
        """Draw one item an id, (B,) int64; the same id and randomness give the same latent in every model."""


@runtime_checkable
class InitialisesFromData(Protocol):
    """Sets some of its parameters from the first batch (ActNorm)."""

    def initialise(self, batch: Batch, randomness: Randomness) -> None:
        """Run the data-dependent initialisation once, before the first training step."""


CAPABILITIES: dict[str, type] = {
    "training_loss": Trains,
    "likelihood": HasLikelihood,
    "samples": Samples,
}
"""Capabilities that objectives and evaluators ask for, by the name used in error messages. A new family adds its own
protocol here; a plugin does so when its module is imported."""
