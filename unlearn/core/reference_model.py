"""The frozen target, outside every module tree: never in a checkpoint, never copied."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from contextlib import AbstractContextManager
from inspect import isroutine
from typing import Any, Self

from torch import Tensor, nn
from typing_extensions import override


class ReferenceModel:
    """Loads the frozen target when it is first asked for.

    Args:
        load: returns the target.
    """

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._model: nn.Module | None = None
        self._like: Tensor | None = None

    def __call__(self) -> Any:
        """Return the target in eval mode, without gradients, on the device of the trained model."""
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
        """Return itself: a copy of a module shares the target."""
        return self


class AdapterDisabledReference(ReferenceModel):
    """The trained model itself with a scope's adapter off: the target without a second model in memory.

    Args:
        model: the model that is trained.
        off: returns a context in which it is the target again.
    """

    def __init__(self, model: nn.Module, off: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(lambda: model)
        self._view = _View(model, off)

    @override
    def __call__(self) -> Any:
        """Return a view of the model whose methods, and whose submodules, run with the adapter off."""
        return self._view

    @override
    def to(self, like: Tensor) -> None:
        pass  # it lives where the trained model lives


class _View:
    """A module with the adapter off: every attribute is read, and every call made, inside ``off``.

    Modules reached through it (attributes, items, results) are views again, so that no path ends at the trained model.
    It is no ``nn.Module``: code that needs one (a deep copy, a hook) must take the model itself.
    """

    def __init__(self, module: nn.Module, off: Callable[[], AbstractContextManager[None]]) -> None:
        self._module, self._off = module, off

    def __getattr__(self, name: str) -> Any:
        if name == "eval":
            return lambda: self  # the trained model keeps its mode
        # Python's own protocols (copy, pickle), and what would change the trained model, must not pass through
        if name.startswith(("__", "register_")) or name in ("train", "to", "requires_grad_", "load_state_dict"):
            raise AttributeError(f"the reference under an adapter has no {name}")
        with self._off():  # a parametrized weight is computed when it is read
            found = getattr(self._module, name)
        return self._bound(found) if isroutine(found) else self._viewed(found)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._bound(self._module)(*args, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self._viewed(self._module[index])  # type: ignore[index]

    def __iter__(self) -> Iterator[Any]:
        return iter([self._viewed(item) for item in self._module])  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._module)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError("The reference is the trained model with its adapter off; it cannot be copied. Type scope=all.")

    def _bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._off():
                result = function(*args, **kwargs)
            return self._viewed(result)

        return call

    def _viewed(self, found: Any) -> Any:
        if isinstance(found, nn.Module):
            return _View(found, self._off)
        if type(found) in (tuple, list, set, frozenset):
            return type(found)(self._viewed(item) for item in found)
        if type(found) in (dict, OrderedDict):
            return type(found)((key, self._viewed(value)) for key, value in found.items())
        if isinstance(found, KeysView | ValuesView | ItemsView):  # of a ModuleDict
            return [self._viewed(item) for item in found]
        return self._each(found) if isinstance(found, Iterator) else found

    def _each(self, generator: Iterator[Any]) -> Iterator[Any]:
        """Yield an iterator's items; the adapter is off only while the iterator itself runs."""
        end = object()
        while True:
            with self._off():
                item = next(generator, end)
            if item is end:
                return
            yield self._viewed(item)
