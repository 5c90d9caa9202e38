"""A reader of the public ``.pkl`` files of StyleGAN2 that executes nothing.

A pickle is a program. The standard library's unpickler runs it here without anything that could act: names are looked
up in a list of inert functions of this module and never imported, the instructions that make or change other objects
are gone, and those that are left check what they are applied to.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from unlearn.core.errors import RecipeError, shorten

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
_MOST_BITS = 80  # of an integer; _MAGIC has 77
_MOST_HEADER = 4096  # bytes of a stored tensor that a call may copy; torch.save puts some 300 before its numbers
_DAMAGE = (ValueError, LookupError, TypeError, OverflowError, EOFError, struct.error, pickle.UnpicklingError)


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

    def __len__(self) -> int:
        return len(self.data) // self.dtype.itemsize


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
        return _Reader(io.BytesIO(data), [MOST_OPCODES]).load()
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


# The unpickler in Python, not the one in C: its table of instructions can be cut down, and its memo is a dict, so that
# a large index takes no memory. The one in C would also hash any key, which takes for ever for tuples in tuples.
class _Reader(pickle._Unpickler):
    """Reads the next pickle of a file.

    Args:
        file: where it begins.
        budget: number of instructions that may still run, in a list that the readers of one file share.
        in_storage: whether it is part of a stored tensor; there, names of storages and persistent ids are allowed, and
            no other names.
    """

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    stack: list[Any]

    def __init__(self, file: io.BytesIO, budget: list[int], in_storage: bool = False) -> None:
        super().__init__(file)
        self.budget, self.names = budget, STORAGES if in_storage else ALLOWED
        table = _TABLE | _OF_STORAGES if in_storage else _TABLE
        self.dispatch = _Instructions(table, budget)  # type: ignore[misc]  # hides the class's table, which has all

    def load(self) -> Any:
        """Return the object that the pickle describes. Raises Refused."""
        try:
            return super().load()
        except _DAMAGE as error:
            raise Refused(f"it is damaged or no pickle ({type(error).__name__}: {shorten(str(error))})") from error

    def find_class(self, module: str, name: str) -> _Name:
        """Return a name that is on the list."""
        if (full := f"{module}.{name}") not in self.names:
            raise Refused(f"it asks for {shorten(full[:200])}, which is not on the list")
        return _Name(full)

    def persistent_load(self, pid: Any) -> Any:
        """Return the description of a storage as it stands in the file."""
        return ("persistent id", pid)

    def whole_number(self, length: int) -> None:
        """Run LONG1 and LONG4."""
        number = pickle.decode_long(self.read(length))
        if number.bit_length() > _MOST_BITS:
            raise Refused(f"it has a number of more than {_MOST_BITS} bits")
        self.append(number)

    def fill(self, kind: type, items: list[Any]) -> None:
        """Run APPEND, APPENDS, ADDITEMS, SETITEM and SETITEMS."""
        if (given := type(self.stack[-1])) is not kind:
            raise Refused(f"it fills a {given.__name__} like a {kind.__name__}")
        owner = self.stack[-1]
        if kind is list:
            owner.extend(items)
        elif kind is set:
            owner.update(map(_key, items))
        else:
            owner.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def call(self, instruction: str, functions: dict[str, Callable[..., Any]]) -> None:
        """Run REDUCE and NEWOBJ."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name) or type(arguments) is not tuple:
            raise Refused(f"it calls ({instruction}) what is no name on the list")
        if called.name not in functions:
            raise Refused(f"it calls {called.name} or makes an object of it, which is not on the list for that")
        _spend(self.budget, len(arguments))  # a call copies them, and one tuple may be called with many times
        try:
            self.append(functions[called.name](self, *arguments))
        except _DAMAGE as error:
            raise Refused(f"it calls {called.name} with what it does not take ({shorten(str(error))})") from error

    def set_state(self) -> None:
        """Run BUILD: drop the state of an array or a numpy type; nothing else has one that could be set."""
        state, owner = self.stack.pop(), self.stack[-1]
        plain = isinstance(owner, np.dtype) and type(state) is tuple and state[1:5] in _PLAIN_DTYPES
        if owner is not _UNREAD and not plain:
            raise Refused(f"it sets the state (BUILD) of a {type(owner).__name__}, which is not on the list for that")


class _Instructions(dict[int, Callable[[Any], None]]):
    """The unpickler's table of instructions: it counts each one that is looked up, and refuses those it lacks."""

    def __init__(self, table: dict[int, Callable[[Any], None]], budget: list[int]) -> None:
        super().__init__(table)
        self.budget = budget

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        _spend(self.budget, 1)
        if code not in self:
            name = next((name for name, known in _CODES.items() if known == code), f"of code {code}")
            raise Refused(f"it has the instruction {name}, which is not on the list")
        return super().__getitem__(code)


def _spend(budget: list[int], count: int) -> None:
    """Count instructions, or values that one instruction copies."""
    budget[0] -= count
    if budget[0] < 0:
        raise Refused(f"it has more than {MOST_OPCODES:,} instructions")


def _key(key: Any) -> Any:
    """Return a key of a dict or set: a text, or what is quickly hashed, to a number that others can hardly share."""
    if not isinstance(key, str | int | None) or (isinstance(key, int) and abs(key) >= 2**60):
        raise Refused(f"it has a {type(key).__name__} for a key")
    return key


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _whole(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > 8 or not all(type(n) is int and 0 <= n < 2**63 for n in values):
        raise TypeError("sizes that are no whole numbers of 0 or more, and of 63 bits")
    return values


# Inert functions, each in the place of the one that the file names.


def _empty_mapping(reader: _Reader) -> dict[Any, Any]:
    return {}  # filled by instructions that follow


def _set(reader: _Reader, items: Any) -> set[Any]:
    _spend(reader.budget, len(_is(list, items)))
    return set(map(_key, items))


def _persistent(reader: _Reader, meta: Any) -> Persistent:
    if _is(dict, meta).get("type") != "class":
        raise ValueError("something other than the state of an object")
    return Persistent(_is(str, meta.get("class_name")), _is(dict, meta.get("state")))


def _strided(reader: _Reader, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Strided:
    whole = Strided(_is(Storage, storage), _whole((offset,))[0], _whole(size), _whole(stride))
    if len(size) != len(stride) or len(rest) > 3:
        raise ValueError("a shape and strides that differ, or more than it takes")
    if 0 in size and size != (0,):
        raise ValueError(f"an empty tensor of {len(size)} dimensions")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (count := math.prod(size)) > len(storage) or (count and last >= len(storage)):
        raise ValueError("a tensor that is larger than what is stored of it")
    return whole


def _parameter(reader: _Reader, data: Any, requires_grad: Any, hooks: Any) -> Strided:
    return _is(Strided, data)


def _storage(reader: _Reader, data: Any) -> Storage:
    """Read the bytes of one stored tensor, as ``torch.save`` wrote them before its zip format."""
    file = io.BytesIO(_is(bytes, data)[:_MOST_HEADER])
    magic, version, system, about, keys = (_Reader(file, reader.budget, in_storage=True).load() for _ in range(5))
    if (magic, version) != (_MAGIC, _VERSION) or _is(dict, system).get("little_endian") is not True:
        raise ValueError("bytes that torch.save did not write, or that are not little-endian")
    match about:
        case ("persistent id", ("storage", _Name(kind), str() as key, str(), int() as length, None)) if keys == [key]:
            start = file.tell() + 8
            end = start + length * STORAGES[kind].itemsize
            if length < 0 or end != len(data) or data[start - 8 : start] != struct.pack("<q", length):
                raise ValueError("a stored tensor whose length is not that of its bytes")
            return Storage(STORAGES[kind], memoryview(data)[start:])
    raise ValueError("something other than one stored tensor")


def _dtype(reader: _Reader, code: Any, *rest: Any) -> np.dtype[Any]:
    # not lstrip, which would go through a long text of them again at each call
    if (number := _is(str, code).removeprefix("<").removeprefix("|")) not in NUMBERS:
        raise ValueError(f"the numpy type {code[:80]}")
    return np.dtype(f"<{number}")


def _scalar(reader: _Reader, kind: Any, data: Any) -> Any:
    if not isinstance(kind, np.dtype) or len(_is(bytes, data)) != kind.itemsize:
        raise ValueError("bytes that do not fit the type")
    return np.frombuffer(data, dtype=kind).item()


def _array(reader: _Reader, *shape: Any) -> object:
    return _UNREAD


_MAPPINGS = dict.fromkeys(("collections.OrderedDict", "dnnlib.util.EasyDict"), _empty_mapping)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_MAPPINGS,
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _set),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _array),
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch.storage._load_from_bytes": _storage,
    "numpy.dtype": _dtype,
}
ALLOWED = frozenset({*_FUNCTIONS, "numpy.ndarray"})  # the last is an argument of _reconstruct, and is never called
"""The names that a file may use; each stands for a function of this module."""

_PLAIN_DTYPES = (("<", None, None, None), ("|", None, None, None))  # byte order, subdtype, names, fields
_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
_STANDARD = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL"
)
_OWN: dict[str, Callable[[Any], None]] = {
    "LONG1": lambda reader: reader.whole_number(reader.read(1)[0]),
    "LONG4": lambda reader: reader.whole_number(*struct.unpack("<I", reader.read(4))),
    "APPEND": lambda reader: reader.fill(list, [reader.stack.pop()]),
    "APPENDS": lambda reader: reader.fill(list, reader.pop_mark()),
    "ADDITEMS": lambda reader: reader.fill(set, reader.pop_mark()),
    "SETITEM": lambda reader: reader.fill(dict, [reader.stack.pop(), reader.stack.pop()][::-1]),
    "SETITEMS": lambda reader: reader.fill(dict, reader.pop_mark()),
    "REDUCE": lambda reader: reader.call("REDUCE", _FUNCTIONS),
    "NEWOBJ": lambda reader: reader.call("NEWOBJ", _MAPPINGS),
    "BUILD": _Reader.set_state,
}
_READS: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch
_TABLE = {_CODES[name]: _READS[_CODES[name]] for name in _STANDARD.split()} | {_CODES[n]: _OWN[n] for n in _OWN}
_OF_STORAGES = {_CODES["BINPERSID"]: _READS[_CODES["BINPERSID"]]}
