"""A reader of the public ``.pkl`` files of StyleGAN2 that executes nothing.

Such a file is a program. Here a small machine of our own runs the few instructions that the files need; no name in the
file is ever imported, and no object of a class that it names is made. Every other instruction or name is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearn.core.errors import RecipeError, shorten

MOST_BYTES = 4 * 2**30
MOST_OPCODES = 2_000_000
"""Public files have some ten thousand."""

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""Types of numpy's values that are read; none holds Python objects."""

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


@dataclass(frozen=True)
class Persistent:
    """What is left of an object whose source stands in the file: its class's name and its attributes.

    Args:
        kind: name of the class, e.g. Generator.
        state: its attributes.
    """

    kind: str
    state: dict[Any, Any] = field(repr=False)


@dataclass(frozen=True)
class Storage:
    """Numbers of one type in the file.

    Args:
        dtype: their type.
        data: their bytes, little-endian.
    """

    dtype: torch.dtype
    data: memoryview = field(repr=False)

    def __len__(self) -> int:
        return len(self.data) // self.dtype.itemsize


@dataclass(frozen=True)
class Strided:
    """A tensor that is not read yet.

    Args:
        storage: where its numbers are.
        offset: of its first.
        size: its shape.
        stride: steps in the storage.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Read it."""
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.storage.dtype)
        numbers = torch.frombuffer(bytearray(self.storage.data), dtype=self.storage.dtype)
        return numbers.as_strided(self.size, self.stride, self.offset).clone()


def read_pickle(path: Path) -> Any:
    """Return what a file holds: dicts, lists, numbers and strings, with ``Persistent`` and ``Strided`` objects in them.

    Time and memory are bounded by the file's size, and by a number of instructions.

    Raises:
        RecipeError: the file asks for something that is not on the list (named in the message), or is damaged.
    """
    try:
        if (size := Path(path).stat().st_size) > MOST_BYTES:
            raise RecipeError(f"{path} has {size:,} bytes; files of {MOST_BYTES:,} and less are read.")
        data = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error}).") from error
    try:
        return _Machine([MOST_OPCODES]).run(io.BytesIO(data))
    except Refused as error:
        raise RecipeError(
            f"{path} was not read: {error}. Nothing of it was executed. Only networks of the public StyleGAN2 files "
            "for PyTorch are read; for others give a folder."
        ) from error


class Refused(Exception):
    """The file asks for something that is not on the list, or is damaged."""


@dataclass(frozen=True)
class _Name:
    """``module.attribute`` in the file; never imported."""

    name: str


@dataclass
class _Numpy:
    """A numpy type or array that waits for its state."""

    code: str = ""
    array: np.ndarray[Any, Any] | None = None
    is_array: bool = False


_MARK = object()
_MOST_BITS = 80
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


class _Machine:
    """Runs the instructions of one pickle, or of several that follow each other.

    Args:
        budget: how many more instructions may be run, in a list that nested machines share.
        storages: whether the objects that only a stored tensor has are allowed.
    """

    def __init__(self, budget: list[int], storages: bool = False) -> None:
        self.budget, self.storages = budget, storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        """Return the object that the next pickle of a file describes."""
        self.stack, self.memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                self.budget[0] -= 1
                if self.budget[0] < 0:
                    raise Refused(f"it has more than {MOST_OPCODES:,} instructions")
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, EOFError, struct.error) as error:
            raise Refused(f"it is damaged or no pickle ({type(error).__name__}: {shorten(str(error))})") from error
        raise Refused("it ends too early")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
                raise Refused(f"it has a number of more than {_MOST_BITS} bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "TUPLE":
            self.stack.append(tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(reversed([self._pop() for _ in range(int(name[-1]))])))
        elif name in ("APPEND", "APPENDS"):
            added = [self._pop()] if name == "APPEND" else self._since_mark()
            self._container(list).extend(added)
        elif name == "ADDITEMS":
            added = self._since_mark()
            self._container(set).update(_key(item) for item in added)
        elif name in ("SETITEM", "SETITEMS"):
            added = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._since_mark()
            pairs = zip(added[::2], added[1::2], strict=True)
            self._container(dict).update((_key(key), value) for key, value in pairs)
        elif name == "GLOBAL":
            self.stack.append(_Name(_known(argument.replace(" ", "."), self.storages)))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            if not isinstance(attribute, str) or not isinstance(module, str):
                raise Refused("it names something by what is no text")
            self.stack.append(_Name(_known(f"{module}.{attribute}", self.storages)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = self._pop(), self._pop()
            if not isinstance(called, _Name) or not isinstance(arguments, tuple):
                raise Refused(f"it calls ({name}) what is no name on the list")
            self.stack.append(self._call(called.name, arguments, name == "NEWOBJ"))
        elif name == "BUILD":
            state = self._pop()
            _set_state(self._top(), state)
        elif name == "BINPERSID" and self.storages:
            self.stack.append(("persistent id", self._pop()))
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"it has the instruction {name}, which is not on the list")

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise Refused("it takes from an empty stack")
        return self.stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while True:
            if not self.stack:
                raise Refused("it takes from an empty stack")
            if (item := self.stack.pop()) is _MARK:
                return items[::-1]
            items.append(item)

    def _container(self, kind: type) -> Any:
        found = self._top()
        if type(found) is not kind:
            raise Refused(f"it fills a {type(found).__name__} like a {kind.__name__}")
        return found

    def _call(self, name: str, arguments: tuple[Any, ...], new: bool) -> Any:
        """Do what a function on the list does, to arguments of the form that it takes."""
        if name in _EMPTY_MAPPINGS:  # filled by instructions that follow
            return dict(_checked(name, arguments))
        if new:
            raise Refused(f"it makes an object of {name}, which is not on the list for that")
        if name in _SETS:
            (items,) = _checked(name, arguments, list)
            self.budget[0] -= len(items)
            return {_key(item) for item in items}
        if name == "torch_utils.persistence._reconstruct_persistent_obj":
            return _persistent(name, *_checked(name, arguments, dict))
        if name == "torch.storage._load_from_bytes":
            return self._storage(name, *_checked(name, arguments, bytes))
        if name == "torch._utils._rebuild_tensor_v2":
            return _strided(name, arguments)
        if name == "torch._utils._rebuild_parameter":
            return _checked(name, arguments, Strided, bool, dict)[0]
        if name == "numpy.dtype":
            code = arguments[0] if arguments else None
            if not isinstance(code, str) or code.lstrip("<|") not in NUMBERS:
                raise Refused(f"it asks for the numpy type {shorten(str(code)[:80])}, which is not on the list")
            return _Numpy(code.lstrip("<|"))
        if name in _SCALARS:
            kind, data = _checked(name, arguments, _Numpy, bytes)
            return _numbers(name, kind, data, ()).item()
        if name in _ARRAYS:
            return _Numpy(is_array=True)
        raise Refused(f"it calls {name}, which is not on the list for that")

    def _storage(self, name: str, data: bytes) -> Storage:
        """Read the bytes of one stored tensor, as ``torch.save`` wrote them before its zip format."""
        file, inner = io.BytesIO(data), _Machine(self.budget, storages=True)
        if inner.run(file) != _MAGIC or inner.run(file) != _VERSION:
            raise Refused(f"{name} was given bytes that torch.save did not write")
        system = inner.run(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused(f"{name} was given numbers that are not little-endian")
        match inner.run(file):
            case ("persistent id", ("storage", _Name(name=kind), str() as key, str(), int() as length, *view)):
                if any(part is not None for part in view) or inner.run(file) != [key]:
                    raise Refused(f"{name} was given more than one stored tensor")
            case _:
                raise Refused(f"{name} was given something other than a stored tensor")
        dtype = STORAGES[kind.removeprefix("torch.")]
        start = file.tell() + 8
        end = start + length * dtype.itemsize
        if length < 0 or end != len(data) or struct.unpack("<q", data[start - 8 : start])[0] != length:
            raise Refused(f"{name} was given a stored tensor whose length is not that of its bytes")
        return Storage(dtype, memoryview(data)[start:end])


_EMPTY_MAPPINGS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
_SETS = ("builtins.set", "__builtin__.set")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
ALLOWED = frozenset(
    {
        *_EMPTY_MAPPINGS,
        *_SETS,
        *_SCALARS,
        *_ARRAYS,
        "torch_utils.persistence._reconstruct_persistent_obj",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.storage._load_from_bytes",
        "numpy.dtype",
        "numpy.ndarray",
    }
)
"""The names that a file may use; each stands for a function of this module."""


def _known(name: str, storages: bool) -> str:
    of_storages = storages and name.startswith("torch.") and name.removeprefix("torch.") in STORAGES
    if of_storages or (name in ALLOWED and not storages):
        return name
    raise Refused(f"it asks for {shorten(name[:200])}, which is not on the list")


def _key(key: Any) -> Any:
    """Return a key of a dict or set: only what is hashed in time bounded by its own size."""
    if not isinstance(key, str | int | float | None):
        raise Refused(f"it has a {type(key).__name__} for a key")
    return key


def _checked(name: str, arguments: tuple[Any, ...], *kinds: type) -> tuple[Any, ...]:
    if len(arguments) != len(kinds) or any(type(a) is not kind for a, kind in zip(arguments, kinds, strict=True)):
        given = ", ".join(type(argument).__name__ for argument in arguments[:8])
        raise Refused(f"it calls {name} with ({given})")
    return arguments


def _persistent(name: str, meta: dict[Any, Any]) -> Persistent:
    kind, state = meta.get("class_name"), meta.get("state")
    if meta.get("type") != "class" or type(kind) is not str or type(state) is not dict:
        raise Refused(f"it calls {name} with something other than the state of an object")
    return Persistent(kind, state)


def _whole(values: Any) -> bool:
    return type(values) is tuple and len(values) <= 8 and all(type(value) is int and value >= 0 for value in values)


def _strided(name: str, arguments: tuple[Any, ...]) -> Strided:
    storage, offset, size, stride, *others = (*arguments, None, None, None, None)[: max(4, len(arguments))]
    if type(storage) is not Storage or not _whole((offset,)) or not _whole(size) or not _whole(stride):
        raise Refused(f"it calls {name} with something other than a stored tensor and its shape")
    if len(size) != len(stride) or len(others) > 3:
        raise Refused(f"it calls {name} with a shape and strides that differ, or with more than it takes")
    if 0 in size and size != (0,):
        raise Refused(f"it calls {name} with an empty tensor of {len(size)} dimensions")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > len(storage) or (count and last >= len(storage)):
        raise Refused(f"it calls {name} with a tensor that is larger than what is stored of it")
    return Strided(storage, offset, size, stride)


def _numbers(name: str, kind: _Numpy, data: bytes, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if kind.is_array or not kind.code or len(data) != math.prod(shape) * np.dtype(kind.code).itemsize:
        raise Refused(f"it calls {name} with bytes that do not fit the type")
    return np.frombuffer(data, dtype=f"<{kind.code}").reshape(shape)


def _set_state(owner: Any, state: Any) -> None:
    """Take a numpy type's or array's state, and that of nothing else."""
    match owner, state:
        case _Numpy(is_array=False), (int(), ("<" | "|"), None, None, None, int(), int(), int()):
            return
        case _Numpy(is_array=True, array=None), (int(), shape, _Numpy() as kind, bool() as columns, bytes() as data):
            if not _whole(shape):
                raise Refused("it gives an array a shape of other than whole numbers")
            flat = _numbers("numpy.ndarray", kind, data, (math.prod(shape),))
            owner.array = flat.reshape(shape, order="F" if columns else "C")
            return
    raise Refused(f"it sets the state (BUILD) of a {type(owner).__name__}, which is not on the list for that")
