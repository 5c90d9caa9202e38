"""What an edit is: the unlearned model computed from the target and from copies that are trained further."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from unlearn.core.optim import Optim
from unlearn.data.base import Split
from unlearn.models.capabilities import M

W = TypeVar("W")


class Train(Protocol):
    """Trains further; the engine gives it to an edit."""

    def __call__(self, model: W, split: str, optim: Optim) -> W:
        """Return a copy of a model, trained with its own training loss on a split; the model stays as it is."""


@dataclass(frozen=True)
class Edit(ABC, Generic[M]):
    """Makes the unlearned model at once, where objectives make it step by step."""

    @abstractmethod
    def __call__(self, target: M, train: Train, splits: Mapping[str, Split]) -> M:
        """Return the unlearned model; the target stays as it is."""
