"""YAML in which every value stays the text that was written, so that `no`, `1:30` and `012` mean themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, TypeAlias

import yaml

from unlearn.core.errors import RecipeError, shorten

Tree: TypeAlias = "str | list[Tree] | dict[str, Tree] | None"

MAX_CHARACTERS = 256 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 32
_NULLS = ("", "~", "null")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str, where: str) -> Tree:
    """Return a YAML document as mappings, lists, text and None.

    Only an unquoted ``null``, ``~`` or nothing is None; every other scalar is the text that stands there.

    Args:
        text: one YAML document.
        where: file name or argument, for messages.

    Raises:
        RecipeError: no valid YAML, a repeated key, a tag, a merge key, or a document too large or too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{where}: {len(text)} characters are too many for a recipe; at most {MAX_CHARACTERS}.")
    try:
        return _Document(yaml.parse(text, Loader=_Loader), where).read()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise RecipeError(f"{where}{line} is no valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise RecipeError(f"{where} is no valid YAML: {' '.join(str(error).split())}") from error


class _Document:
    """One pass over the events of a document, with a bound on its expanded size (aliases count each time)."""

    def __init__(self, events: Iterator[Any], where: str) -> None:
        self.events = events
        self.where = where
        self.anchors: dict[str, Tree] = {}
        self.budget = MAX_NODES

    def read(self) -> Tree:
        """Return the only document, None where there is nothing."""
        next(self.events)  # stream start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        tree = self.node(next(self.events), 0)
        next(self.events)  # document end
        if not isinstance(next(self.events), yaml.StreamEndEvent):
            raise RecipeError(f"{self.where} holds several documents; keep one, without further '---' lines.")
        return tree

    def node(self, event: Any, depth: int) -> Tree:
        """Return the value that starts with an event."""
        line = f"{self.where}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise RecipeError(f"{line}: *{event.anchor} stands for nothing finished before it.")
            return self.copy(self.anchors[event.anchor])
        self.spend(depth)
        if event.tag not in (None, "!"):
            raise RecipeError(f"{line}: the tag {event.tag} is not allowed in a recipe; leave it out.")
        value: Tree
        if isinstance(event, yaml.ScalarEvent):
            value = None if event.implicit[0] and event.value in _NULLS else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.items(depth)
        else:
            value = self.mapping(depth)
        if event.anchor:
            self.anchors[event.anchor] = value
        return value

    def items(self, depth: int) -> list[Tree]:
        """Return the list whose start was just read."""
        found: list[Tree] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.node(event, depth + 1))
        return found

    def mapping(self, depth: int) -> dict[str, Tree]:
        """Return the mapping whose start was just read."""
        found: dict[str, Tree] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = f"{self.where}, line {event.start_mark.line + 1}"
            key = self.node(event, depth + 1)
            if not isinstance(key, str) or not key:
                raise RecipeError(f"{line}: a key must be text, not {shorten(key)}.")
            if key == "<<":
                raise RecipeError(f"{line}: merge keys are not allowed; a recipe inherits by 'base:'.")
            if key in found:
                raise RecipeError(f"{line}: the key {shorten(key)} stands twice; remove one.")
            found[key] = self.node(next(self.events), depth + 1)
        return found

    def copy(self, value: Tree) -> Tree:
        """Return a copy of what an alias stands for, at the price of its size."""
        self.spend(0)
        if isinstance(value, dict):
            return {key: self.copy(item) for key, item in value.items()}
        return [self.copy(item) for item in value] if isinstance(value, list) else value

    def spend(self, depth: int) -> None:
        """Count one value."""
        self.budget -= 1
        if self.budget < 0:
            raise RecipeError(f"{self.where} is too large: over {MAX_NODES} values once its aliases are expanded.")
        if depth > MAX_DEPTH:
            raise RecipeError(f"{self.where} is nested over {MAX_DEPTH} levels deep.")


def from_python(value: Any, where: str) -> Tree:
    """Return Python values (mappings, sequences, text, numbers, bool, None, paths) as the text a recipe would hold."""
    return _text(value, where, 0, count())


def _text(value: Any, where: str, depth: int, seen: Iterator[int]) -> Tree:
    if depth > MAX_DEPTH or next(seen) > MAX_NODES:
        raise RecipeError(
            f"{shorten(where)} is too large for a recipe: {MAX_DEPTH} levels, {MAX_NODES} values at most."
        )
    if value is None or isinstance(value, str):
        return None if value is None else str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return _digits(int(value), where)
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {_key(key, where): _text(item, f"{where}.{key}", depth + 1, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_text(item, f"{where}[{index}]", depth + 1, seen) for index, item in enumerate(value)]
    raise RecipeError(
        f"{where} is a {type(value).__name__}; a recipe holds text, numbers, true, false, lists and mappings."
    )


def _key(key: Any, where: str) -> str:
    if isinstance(key, str) and key:
        return str(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return _digits(key, where)
    raise RecipeError(f"{where}: a key must be text, not {shorten(key)}.")


def _digits(number: int, where: str) -> str:
    if abs(number) >= 2**63:
        raise RecipeError(f"{where}: the number is too large; it must lie within 64 bits.")
    return str(number)


def dump(tree: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """Write a resolved recipe as block YAML that every YAML 1.1 reader reads with the same types.

    Args:
        tree: nested mappings whose leaves are text, numbers, bool, None or lists of them.
        comments: dotted key -> comment set behind that value, all in one column.
    """
    lines = list(_lines(tree, (), comments or {}))
    width = min(72, max((len(text) for text, note in lines if note), default=0))
    return "".join(f"{text:<{width}}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def _lines(tree: Mapping[str, Any], path: tuple[str, ...], comments: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        head = f"{'  ' * len(path)}{inline(key)}:"
        if isinstance(value, Mapping) and value:
            yield head, ""
            yield from _lines(value, (*path, key), comments)
        else:
            yield f"{head} {inline(value)}", comments.get(".".join((*path, key)), "")


def inline(value: Any) -> str:
    """Write one value on one line, quoted only where it must be."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inline(key)}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inline, value)) + "]"
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    flow = yaml.safe_dump([value], default_flow_style=True, default_style=style, width=2**31, allow_unicode=True)
    return flow.strip()[1:-1].removeprefix("!!null ")
