"""An unpickler that executes nothing.

A pickle is a program. The standard library's unpickler runs it here without anything that could act: names are looked
up in a table of inert functions and never imported, the instructions that make or change other objects are gone, and
those that are left check what they are applied to.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from typing_extensions import override

from unlearn.core.errors import shorten

_MOST_BITS = 80  # of an integer; the magic number of torch.save has 77
_DAMAGE = (ValueError, LookupError, TypeError, OverflowError, EOFError, struct.error, pickle.UnpicklingError)


class Refused(Exception):
    """The file asks for something that is not on the list, or is damaged."""


@dataclass(frozen=True)
class Name:
    """``module.attribute`` in the file; never imported."""

    name: str


class Budget:
    """Number of instructions that a file may run, and of values that they may copy."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def spend(self, count: int) -> None:
        """Raise Refused for more than are left."""
        self.left -= count
        if self.left < 0:
            raise Refused(f"it has more than {self.most:,} instructions")


# The unpickler in Python, not the one in C: its table of instructions can be cut down, and its memo is a dict, so that
# a large index takes no memory. The one in C would also hash any key, which takes for ever for tuples in tuples.
class RestrictedUnpickler(pickle._Unpickler):
    """Reads the next pickle of a file.

    Args:
        file: where it begins.
        budget: shared by the readers of one file.
        functions: what is called for each name that the file may use; None for a name that is never called.
    """

    constructors: ClassVar[frozenset[str]] = frozenset()
    """Names of which NEWOBJ may make an object."""

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    stack: list[Any]

    def __init__(self, file: io.BytesIO, budget: Budget, functions: Mapping[str, Callable[..., Any] | None]) -> None:
        super().__init__(file)
        self.budget, self.functions = budget, functions

    @override
    def load(self) -> Any:
        try:
            return super().load()
        except _DAMAGE as error:
            raise Refused(f"it is damaged or no pickle ({type(error).__name__}: {shorten(str(error))})") from error

    @override
    def find_class(self, module: str, name: str) -> Name:
        if (full := f"{module}.{name}") not in self.functions:
            raise Refused(f"it asks for {shorten(full[:200])}, which is not on the list")
        return Name(full)

    @override
    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it has a persistent id (BINPERSID), which is not on the list")

    def ignores_state(self, owner: object, state: object) -> bool:
        """Return whether an object may lose the state that BUILD would set; it refuses all others."""
        return False

    def whole_number(self, length: int) -> None:
        """Run LONG1 and LONG4."""
        number = pickle.decode_long(self.read(length))
        if number.bit_length() > _MOST_BITS:
            raise Refused(f"it has a number of more than {_MOST_BITS} bits")
        self.append(number)

    def fill(self, kind: type, items: list[Any]) -> None:
        """Run APPEND, APPENDS, ADDITEMS, SETITEM and SETITEMS."""
        owner, given = self.stack[-1], type(self.stack[-1])
        if given is not kind:
            raise Refused(f"it fills a {given.__name__} like a {kind.__name__}")
        if kind is list:
            owner.extend(items)
        elif kind is set:
            owner.update(map(checked_key, items))
        else:
            owner.update((checked_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def call(self, instruction: str) -> None:
        """Run REDUCE and NEWOBJ."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or type(arguments) is not tuple:
            raise Refused(f"it calls ({instruction}) what is no name on the list")
        function = self.functions[called.name]
        if function is None or (instruction == "NEWOBJ" and called.name not in self.constructors):
            raise Refused(f"it calls {called.name} or makes an object of it, which is not on the list for that")
        # a call copies them and their items, and one tuple may be called with many times
        self.budget.spend(len(arguments) + sum(len(each) for each in arguments if isinstance(each, list)))
        try:
            self.append(function(*arguments))
        except _DAMAGE as error:
            raise Refused(f"it calls {called.name} with what it does not take ({shorten(str(error))})") from error

    def build(self) -> None:
        """Run BUILD."""
        state, owner = self.stack.pop(), self.stack[-1]
        if not self.ignores_state(owner, state):
            raise Refused(f"it sets the state (BUILD) of a {type(owner).__name__}, which is not on the list for that")


def checked_key(key: Any) -> Any:
    """Return a key of a dict or set: a text, or what is quickly hashed, to a number that others can hardly share."""
    if not isinstance(key, str | int | None) or (isinstance(key, int) and abs(key) >= 2**60):
        raise Refused(f"it has a {type(key).__name__} for a key")
    return key


def _run(reader: RestrictedUnpickler, name: str) -> None:
    """Count an instruction, and run it where it is on the list."""
    reader.budget.spend(1)
    if name not in _INSTRUCTIONS:
        raise Refused(f"it has the instruction {name}, which is not on the list")
    _INSTRUCTIONS[name](reader)


_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_STANDARD = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID"
)
_OWN: dict[str, Callable[[RestrictedUnpickler], None]] = {
    "LONG1": lambda reader: reader.whole_number(reader.read(1)[0]),
    "LONG4": lambda reader: reader.whole_number(*struct.unpack("<I", reader.read(4))),
    "APPEND": lambda reader: reader.fill(list, [reader.stack.pop()]),
    "APPENDS": lambda reader: reader.fill(list, reader.pop_mark()),
    "ADDITEMS": lambda reader: reader.fill(set, reader.pop_mark()),
    "SETITEM": lambda reader: reader.fill(dict, [reader.stack.pop(), reader.stack.pop()][::-1]),
    "SETITEMS": lambda reader: reader.fill(dict, reader.pop_mark()),
    "REDUCE": lambda reader: reader.call("REDUCE"),
    "NEWOBJ": lambda reader: reader.call("NEWOBJ"),
    "BUILD": RestrictedUnpickler.build,
}
_INSTRUCTIONS: dict[str, Callable[[Any], None]] = {
    **{_NAMES[code]: run for code, run in pickle._Unpickler.dispatch.items() if _NAMES[code] in _STANDARD.split()},
    **_OWN,
}
RestrictedUnpickler.dispatch = {  # hides the table with all instructions
    code: partial(_run, name=_NAMES.get(code, f"of code {code}")) for code in range(256)
}
