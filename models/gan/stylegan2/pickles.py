"""A reader of the public ``.pkl`` files of StyleGAN2 that executes nothing."""

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.models.gan.stylegan2.unpickler import Budget, Name, Refused, RestrictedUnpickler, checked_key

MOST_BYTES = 4 * 2**30
MOST_OPCODES = 2_000_000
"""Public files have some ten thousand."""

STORAGES: dict[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""Types of numpy's values that are read; none holds Python objects."""

T = TypeVar("T")
_UNREAD = object()  # stands for an array of numpy, which no network needs
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch.save, before its zip format
_MOST_HEADER = 4096  # bytes of a stored tensor that a call may copy; torch.save puts some 300 before its numbers


@dataclass(frozen=True)
class Persistent:
    """Stands for an object whose source code is in the file: its class's name and its attributes.

    Args:
        kind: name of the class, e.g. Generator.
        state: its attributes.
    """

    kind: str
    state: dict[Any, Any] = field(repr=False)


@dataclass(frozen=True)
class Storage:
    """Numbers of one type, little-endian."""

    dtype: torch.dtype
    data: memoryview = field(repr=False)


@dataclass(frozen=True)
class Strided:
    """A view of a storage, from which a tensor can be made; see ``torch.as_strided``."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Return it as a tensor of its own."""
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.storage.dtype)
        numbers = torch.frombuffer(bytearray(self.storage.data), dtype=self.storage.dtype)
        return numbers.as_strided(self.size, self.stride, self.offset).clone()


def read_pickle(path: Path) -> Any:
    """Return what a file holds: dicts, lists, numbers and strings, with ``Persistent`` and ``Strided`` objects in them.

    Time and memory are bounded by the file's size and by ``MOST_OPCODES``.

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
        return _Reader(io.BytesIO(data), Budget(MOST_OPCODES)).load()
    except Refused as error:
        raise RecipeError(
            f"{path} was not read: {error}. Nothing of it was executed. Only networks of the public StyleGAN2 files "
            "for PyTorch are read; for others give a folder."
        ) from error


class _Reader(RestrictedUnpickler):
    """Reads a whole file."""

    constructors = frozenset(("collections.OrderedDict", "dnnlib.util.EasyDict"))

    def __init__(self, file: io.BytesIO, budget: Budget) -> None:
        super().__init__(file, budget, {**_FUNCTIONS, _STORED: partial(_storage, budget)})

    @override
    def ignores_state(self, owner: object, state: object) -> bool:
        plain = (("<", None, None, None), ("|", None, None, None))  # byte order; no subdtype, names, fields
        return owner is _UNREAD or (isinstance(owner, np.dtype) and isinstance(state, tuple) and state[1:5] in plain)


class _StorageReader(RestrictedUnpickler):
    """Reads the header of one stored tensor, which names the type of its numbers and has an id."""

    def __init__(self, file: io.BytesIO, budget: Budget) -> None:
        super().__init__(file, budget, dict.fromkeys(STORAGES))

    @override
    def persistent_load(self, pid: Any) -> Any:
        return ("persistent id", pid)


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _whole(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > 8 or not all(type(n) is int and 0 <= n < 2**63 for n in values):
        raise TypeError("sizes that are no whole numbers of 0 or more, and of 63 bits")
    return values


# Inert functions, each in the place of the one that the file names.


def _set(items: Any) -> set[Any]:
    return set(map(checked_key, _is(list, items)))


def _persistent(meta: Any) -> Persistent:
    if _is(dict, meta).get("type") != "class":
        raise ValueError("something other than the state of an object")
    return Persistent(_is(str, meta.get("class_name")), _is(dict, meta.get("state")))


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Strided:
    view = Strided(_is(Storage, storage), _whole((offset,))[0], _whole(size), _whole(stride))
    if len(size) != len(stride) or len(rest) > 3:
        raise ValueError("a shape and strides that differ, or more than it takes")
    if 0 in size and size != (0,):
        raise ValueError(f"an empty tensor of {len(size)} dimensions")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    held = len(storage.data) // storage.dtype.itemsize
    if (count := math.prod(size)) > held or (count and last >= held):
        raise ValueError("a tensor that is larger than what is stored of it")
    return view


def _storage(budget: Budget, data: Any) -> Storage:
    """Read the bytes of one stored tensor, as ``torch.save`` wrote them before its zip format."""
    file = io.BytesIO(_is(bytes, data)[:_MOST_HEADER])
    magic, version, system, about, keys = (_StorageReader(file, budget).load() for _ in range(5))
    if (magic, version) != (_MAGIC, _VERSION) or _is(dict, system).get("little_endian") is not True:
        raise ValueError("bytes that torch.save did not write, or that are not little-endian")
    match about:
        case ("persistent id", ("storage", Name(kind), str() as key, str(), int() as length, None)) if keys == [key]:
            start = file.tell() + 8
            end = start + length * STORAGES[kind].itemsize
            if length < 0 or end != len(data) or data[start - 8 : start] != struct.pack("<q", length):
                raise ValueError("a stored tensor whose length is not that of its bytes")
            return Storage(STORAGES[kind], memoryview(data)[start:])
    raise ValueError("something other than one stored tensor")


def _dtype(code: Any, *rest: Any) -> np.dtype[Any]:
    # not lstrip, which would go through a long text of them again at each call
    if (number := _is(str, code).removeprefix("<").removeprefix("|")) not in NUMBERS:
        raise ValueError(f"the numpy type {code[:80]}")
    return np.dtype(f"<{number}")


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, np.dtype) or len(_is(bytes, data)) != kind.itemsize:
        raise ValueError("bytes that do not fit the type")
    return np.frombuffer(data, dtype=kind).item()


_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": lambda: {},  # filled by the instructions that follow
    "dnnlib.util.EasyDict": lambda: {},
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _set),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    "numpy.core.multiarray._reconstruct": lambda *shape: _UNREAD,
    "numpy._core.multiarray._reconstruct": lambda *shape: _UNREAD,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: _is(Strided, data),
    "torch._utils._rebuild_tensor_v2": _strided,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,  # an argument of _reconstruct, which is never called
}
_STORED = "torch.storage._load_from_bytes"
ALLOWED = frozenset({*_FUNCTIONS, _STORED})
"""The names that a file may use; each stands for a function of this module."""
