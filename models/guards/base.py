"""Guards: inference-time changes around a model whose weights stay as they are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, runtime_checkable

from torch import Tensor

from unlearn.data.base import Split
from unlearn.models.base import Wrapper
from unlearn.models.capabilities import Denoises, M
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.settings import DiffusionSettings


@dataclass(frozen=True)
class Guard(ABC, Generic[M]):
    """Wraps the target, or the model that objectives or an edit made of it, for sampling."""

    @abstractmethod
    def __call__(self, model: M, splits: Mapping[str, Split]) -> Wrapper:
        """Return the guarded model, which shares the weights; evaluators measure it like any other."""


Steering = Callable[[int, Tensor, Tensor, Condition], Tensor]
"""(number of the step, x_t, t, encoded condition) -> eps, along one trajectory."""


class Steers(Protocol):
    """Steers the scores of a trajectory."""

    @property
    def prompts(self) -> list[str]:
        """Prompts of what must not be drawn."""

    def steering(self, model: Denoises, guidance: float) -> Steering:
        """Return the function that gives eps at each step of one trajectory."""


@runtime_checkable
class Guidable(Denoises, Protocol):
    """A denoiser whose guidance a guard can steer."""

    @property
    def settings(self) -> DiffusionSettings:
        """The model's settings."""

    def guarded(self, guard: Steers) -> Wrapper:
        """Return a model with the same components, not copies, whose samples the guard steers."""
