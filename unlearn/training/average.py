"""The exponential moving average of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearn.training.checkpoint import copy_stored


class WeightAverage:
    """An EMA of parameters, which replaces them at the end (``optim.ema``).

    Lightning's ``EMAWeightAveraging`` keeps a second model; here terms may ask for the averaged weights at any step
    (``Context.averaged``), so weights and averages are swapped in place.

    Args:
        parameters: by name.
        decay: in (0, 1); None keeps no average.

    Attributes:
        values: the averages by name; empty before the start.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None) -> None:
        self.parameters, self.decay = parameters, decay
        self.values: dict[str, Tensor] = {}

    def start(self) -> None:
        """Initialize the averages by the current weights."""
        if self.decay is not None:
            self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def load(self, stored: Mapping[str, Tensor]) -> None:
        """Take the averages of a checkpoint."""
        self.values = {name: torch.empty_like(self.parameters[name], requires_grad=False) for name in stored}
        for name, value in self.values.items():
            copy_stored(name, stored[name], value)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages by the weights after ``step``, counted from 0."""
        if self.decay is not None and self.values:
            # a short run's average must not remember the start: Tarvainen and Valpola's rising decay
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.values.values()), [*self.parameters.values()], 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the parameters by their averages, if any are kept."""
        for name, value in self.values.items():
            self.parameters[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model its averaged weights while the body runs; nothing is copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, value in self.values.items():
            parameter = self.parameters[name]
            self.values[name], parameter.data = parameter.data, value
        torch.clear_autocast_cache()  # autocast would reuse its casts of the other weights
