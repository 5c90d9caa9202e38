"""Base class of edits, which compute the unlearned model from the target and from copies trained further."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from unlearn.core.optim import Optim
from unlearn.core.validation import check_ranges
from unlearn.data.base import Split
from unlearn.models.capabilities import M

W = TypeVar("W")


class Train(Protocol):
    """Trains a copy of a model further; the engine hands it to an edit."""

    def __call__(self, model: W, split: str, optim: Optim) -> W:
        """Return a copy of ``model``, trained on a split with its own training loss; ``model`` is left as it is."""


@dataclass(frozen=True)
class Edit(ABC, Generic[M]):
    """Computes the unlearned model in closed form, where objectives reach it by gradient steps.

    ``Edit[Denoises]`` asks the target for a denoiser; a recipe with another model is refused.
    """

    def __post_init__(self) -> None:
        check_ranges(self)

    @abstractmethod
    def __call__(self, target: M, train: Train, splits: Mapping[str, Split]) -> M:
        """Return the unlearned model; the target is left as it is."""
