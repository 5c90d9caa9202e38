"""The frozen target, outside every module tree: never in a checkpoint, never copied."""

import gc
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, ItemsView, Iterator, KeysView, ValuesView
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from inspect import isroutine
from types import CodeType, FunctionType, ModuleType
from typing import Any, Self
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules import container
from typing_extensions import override

LEAVES = (type, ModuleType, CodeType, Tensor, str, bytes, int, float, complex)
"""What holds no module that is looked for."""
ITEMS = (tuple, list, set, frozenset, deque)
READS = frozenset(
    [
        "forward",
        "extra_repr",
        "state_dict",
        "get_extra_state",
        "get_parameter",
        "get_buffer",
        "get_submodule",
        "parameters",
        "named_parameters",
        "buffers",
        "named_buffers",
        "children",
        "named_children",
        "modules",
        "named_modules",
        "keys",
        "values",
        "items",
        "get",
        "copy",
    ]
)
"""Methods of torch's own module classes that leave the module as it is."""
REMEDY = "Type scope=all, under which the reference is a model of its own."


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
            self._move()
        return self._model

    def to(self, like: Tensor) -> None:
        """Keep the target on the device of ``like``, and in float64 where that is; else tensors keep their types."""
        self._like = like
        self._move()

    def _move(self) -> None:
        if self._model is not None and self._like is not None:
            steps_in_double = self._like.dtype == torch.float64  # trainer.precision=64-true
            self._model.to(device=self._like.device, dtype=torch.float64 if steps_in_double else None)

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
        self._is_off, self._switch_off = False, off
        self._view = _View(model, self._off)

    @override
    def __call__(self) -> Any:
        """Return a view of the model whose methods, and whose submodules, run with the adapter off."""
        return self._view

    @override
    def to(self, like: Tensor) -> None:
        pass  # it lives where the trained model lives

    @contextmanager
    def _off(self) -> Iterator[None]:
        """Switch the adapter off, unless a call around this one did and will switch it on again."""
        if self._is_off:
            yield
            return
        self._is_off = True
        try:
            with self._switch_off():
                yield
        finally:
            self._is_off = False


class _View:
    """A module with the adapter off: every attribute is read, and every call made, inside ``off``.

    What is reached through it (attributes, items, results) and leads to a module, such as a function bound to one or an
    object that keeps one, is a view again, so that no path ends at the trained model. It is no ``nn.Module``: code that
    needs one (a deep copy, a hook) must take the model itself.

    Args:
        whole: the module, or an object that leads to one.
        off: returns a context in which the adapter is off.
    """

    __slots__ = ("_off", "_whole")

    def __init__(self, whole: Any, off: Callable[[], AbstractContextManager[None]]) -> None:
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_off", off)

    def __getattr__(self, name: str) -> Any:
        if isinstance(self._whole, nn.Module):
            if name == "eval":
                return lambda: self  # the trained model keeps its mode
            if _changes(self._whole, name):
                raise AttributeError(_refusal(name))
        if name.startswith("__"):  # Python's own protocols (copy, pickle) must not pass through
            raise AttributeError(f"the reference under an adapter has no {name}")
        return self._run(getattr, self._whole, name)  # a parametrized weight is computed when it is read

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(_refusal(f"setting {name}"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._whole, *args, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self._run(lambda: self._whole[index])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._run(iter, self._whole))

    def __len__(self) -> int:
        return len(self._whole)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _View) and self._whole is other._whole

    def __hash__(self) -> int:
        return id(self._whole)

    def __enter__(self) -> Any:
        return self._run(self._whole.__enter__)

    def __exit__(self, *raised: object) -> Any:
        return self._run(self._whole.__exit__, *raised)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError("The reference is the trained model with its adapter off; it cannot be copied. Type scope=all.")

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._off():
            result = function(*args, **kwargs)
        return self._viewed(result)

    def _viewed(self, found: Any) -> Any:
        """Return what was found, with views in place of all that leads to a module."""
        if isinstance(found, (AsyncIterator, Awaitable)):
            kind = type(found).__name__
            raise TypeError(
                f"The reference under an adapter hands out no {kind}, which runs when the adapter is on again."
            )
        if isinstance(found, Iterator):
            return self._each(found)
        if isinstance(found, _View) or not _leads_to_module(found):
            return found
        if isroutine(found) or isinstance(found, partial):
            return partial(self._run, found)
        if isinstance(found, (KeysView, ValuesView, ItemsView)):  # of a ModuleDict
            return [self._viewed(item) for item in found]
        if isinstance(found, tuple) and hasattr(found, "_make"):
            return found._make(map(self._viewed, found))
        if type(found) in ITEMS:
            return type(found)(map(self._viewed, found))
        if type(found) in (dict, OrderedDict, defaultdict):
            pairs = ((self._viewed(key), self._viewed(value)) for key, value in found.items())
            return (
                defaultdict(self._viewed(found.default_factory), pairs)
                if type(found) is defaultdict
                else type(found)(pairs)
            )
        return _View(found, self._off)

    def _each(self, iterator: Iterator[Any]) -> Generator[Any, Any, Any]:
        """Yield an iterator's items; the adapter is off only while the iterator itself runs."""
        given = None
        try:
            while True:
                with self._off():
                    item = iterator.send(given) if isinstance(iterator, Generator) else next(iterator)
                given = yield self._viewed(item)
        except StopIteration as end:
            return self._viewed(end.value)
        finally:
            if isinstance(iterator, Generator):
                with self._off():
                    iterator.close()


def _refusal(what: str) -> str:
    return f"The reference is the trained model with its adapter off, which {what} would change. {REMEDY}"


def _changes(module: nn.Module, name: str) -> bool:
    """Return whether a name is that of a method of torch's own module classes that changes the module."""
    own = [cls for cls in type(module).__mro__ if cls.__module__ in (nn.Module.__module__, container.__name__)]
    return name not in READS and any(callable(vars(cls).get(name)) for cls in own)


def _leads_to_module(found: object) -> bool:
    """Return whether a module can be reached from an object, through whatever it keeps."""
    todo, seen = [found], {}
    while todo:
        one = todo.pop()
        if isinstance(one, (nn.Module, _View)):
            return True
        if isinstance(one, LEAVES) or id(one) in seen:
            continue
        seen[id(one)] = one  # kept, so that no other object gets its id
        if isinstance(one, FunctionType):  # not its globals
            todo.extend((one.__closure__, one.__defaults__, one.__kwdefaults__, one.__dict__))
        else:
            todo.extend([one()] if isinstance(one, ref) else gc.get_referents(one))
    return False
