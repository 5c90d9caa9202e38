"""The frozen target, outside every module tree: never in a checkpoint, never copied."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Self

from torch import Tensor, nn


class ReferenceModel:
    """Loads the frozen target when it is first asked for.

    Args:
        load: reads the target from where it is kept.
    """

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._model: nn.Module | None = None
        self._like: Tensor | None = None

    def __call__(self) -> Any:
        """Return the target in eval mode, without gradients, where the moving model lives."""
        if self._model is None:
            self._model = self._load().eval().requires_grad_(False)
            if self._like is not None:
                self._model.to(device=self._like.device, dtype=self._like.dtype)
        return self._model

    def to(self, like: Tensor) -> None:
        """Keep the target on the device and in the float type of ``like``."""
        self._like = like
        if self._model is not None:
            self._model.to(device=like.device, dtype=like.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: whoever copies a module must not copy the target."""
        return self


class AdapterDisabledReference(ReferenceModel):
    """The moving model itself, with what a scope attached to it switched off: the target at no cost.

    Args:
        model: the model that moves.
        off: returns a context in which it is the target again.
    """

    def __init__(self, model: nn.Module, off: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(lambda: model)
        self._view = _View(model, off)

    def __call__(self) -> Any:
        """Return the model, whose methods run with the adapter off; its own weights hold still, as they must."""
        return self._view

    def to(self, like: Tensor) -> None:
        """Do nothing: it lives where the moving model lives."""


class _View:
    def __init__(self, model: nn.Module, off: Callable[[], AbstractContextManager[None]]) -> None:
        self._model, self._off = model, off

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if not callable(found) or isinstance(found, nn.Module):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._off():
                result = found(*args, **kwargs)
            return self._each(result) if isinstance(result, Generator) else result

        return call

    def _each(self, made: Generator[Any]) -> Iterator[Any]:
        """Yield what a generator gives; the adapter is off while it works, and on while others do."""
        end = object()
        while True:
            with self._off():
                item = next(made, end)
            if item is end:
                return
            yield item
