"""Builds dataclasses from text: checks each value against its field's type, and names the full key in every error."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearn.config.compose import Given, Node, bare, written
from unlearn.config.yaml_io import Tree
from unlearn.core.boundary import exited
from unlearn.core.errors import RecipeError, did_you_mean, said, shorten

MISSING = "???"
"""OmegaConf's marker of a field without a default."""

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


class Built(NamedTuple):
    """A value of a recipe as an object, and as a tree of plain mappings, lists, text and numbers.

    The tree has every default, but nothing that a class derives by itself, so that it can be loaded again.
    """

    value: Any
    tree: Any


class _Place(NamedTuple):
    """The place of a value: its dotted key, and its origin if the value itself has none."""

    key: str
    origin: str = ""

    def below(self, key: str) -> _Place:
        return _Place(f"{self.key}.{key}" if self.key else key, self.origin)

    def item(self, index: int) -> _Place:
        return _Place(f"{self.key}[{index}]", self.origin)

    def error(self, value: object, hint: Any) -> RecipeError:
        """Return the error for a value that is not of the type, or not as the text ``hint`` describes."""
        key = self.key if len(self.key) <= 120 else f"{self.key[:117]}..."
        expected = hint if isinstance(hint, str) else describe(hint)
        return RecipeError(f"{key} is {shorten(bare(value))}{self.by(value)}; it must be {expected}.")

    def missing(self) -> RecipeError:
        """Return the error for a place where a value is needed and none is given."""
        return RecipeError(f"{self.key} has no value{self.by(None)}; write {self.key}=...")

    def by(self, value: object) -> str:
        """Return the origin of a value as messages show it."""
        return written(value) or (f" ({self.origin})" if self.origin else "")


def build(cls: type[Any], node: Node | Tree, key: str) -> Built:
    """Build a dataclass from the values given for its fields.

    Args:
        cls: a dataclass whose fields OmegaConf can hold.
        node: field name -> value; null or nothing takes all defaults.
        key: dotted key of this part in the recipe, for messages; empty for a whole file.

    Raises:
        RecipeError: unknown field, wrong type, missing value, or a value that the dataclass refuses.
    """
    return _convert(node, cls, _Place(key))


def convert(node: Node | Tree, hint: Any, key: str) -> Any:
    """Return a value converted to the type ``hint``. Raises RecipeError naming the key, the value and the type."""
    return _convert(node, hint, _Place(key)).value


@cache
def hints(cls: type[Any]) -> dict[str, Any]:
    """Return field -> type of a dataclass. Raises RecipeError where OmegaConf cannot hold one."""
    try:
        OmegaConf.structured(cls)
        found = get_type_hints(cls)
    except (OmegaConfBaseException, ValueError, TypeError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"the fields of {cls.__qualname__} cannot be written in a recipe: {reason}") from error
    return {field.name: found[field.name] for field in fields(cls) if field.init}


def default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, or MISSING."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def _instance(cls: type[Any], entries: Any, place: _Place, start: Any) -> Built:
    """Return an instance; the values given replace those of ``start``, or the defaults of the class."""
    allowed = hints(cls)  # type: ignore[arg-type]
    if entries is not None and not isinstance(entries, dict):
        raise place.error(entries, f"a mapping of {', '.join(allowed) or 'nothing'}")
    defaults = {field.name: default(field) if start is None else getattr(start, field.name) for field in fields(cls)}
    given: dict[str, Built] = {}
    for name, item in (entries or {}).items():
        at = place.below(name)
        if name not in allowed:
            below = [place.below(part).below(name).key for part, kind in allowed.items() if _has_field(kind, name)]
            raise RecipeError(f"there is no key {shorten(at.key)}{at.by(item)}. {did_you_mean(name, allowed, below)}")
        given[name] = _convert(item, allowed[name], at, defaults[name])
    for name in allowed:
        if name not in given and defaults[name] == MISSING:
            raise place.below(name).missing()
    values = {name: built.value for name, built in given.items()}
    try:
        value = cls(**values) if start is None else dataclasses.replace(start, **values)
    except SystemExit as error:
        raise RecipeError(f"{place.key} ({cls.__module__}.{cls.__qualname__}) {exited(error)}") from error
    except ValueError as error:
        text = said(error)
        joint = "." if text.split()[:1] in [[name] for name in allowed] else ": "
        raise RecipeError(f"{place.key}{joint}{text}" if place.key else text) from error
    return Built(value, {name: given[name].tree if name in given else plain(defaults[name]) for name in allowed})


def _has_field(hint: Any, name: str) -> bool:
    return is_dataclass(hint) and name in hints(hint)  # type: ignore[arg-type]


def _convert(node: Node | Tree, hint: Any, place: _Place, start: Any = None) -> Built:
    """Return a value of the type; a dataclass starts from ``start``, the default of a field."""
    place = place._replace(origin=node.origin) if isinstance(node, Given) else place
    value = node.value if isinstance(node, Given) else node
    kind, options = get_origin(hint) or hint, get_args(hint)
    if value == MISSING:
        raise place.missing()
    if is_dataclass(hint):
        return _instance(hint, value, place, start)  # type: ignore[arg-type]
    if kind in (Union, UnionType):
        return _one_of(value, options, hint, place)
    if kind is Literal:
        matches = [option for option in options if value == str(option)]
        if not matches:
            raise place.error(value, hint)
        return Built(matches[0], matches[0])
    if kind is dict and isinstance(value, dict):
        entry = (options or (str, Any))[1]
        built = {name: _convert(item, entry, place.below(name)) for name, item in value.items()}
        return Built({name: one.value for name, one in built.items()}, {name: one.tree for name, one in built.items()})
    if kind in (list, tuple):
        items = _items(value, kind, options or (Any, ...), hint, place)
        return Built(kind(item.value for item in items), [item.tree for item in items])
    scalar = _scalar(value, hint, place)
    return Built(scalar, scalar)


def _one_of(value: Any, options: tuple[Any, ...], hint: Any, place: _Place) -> Built:
    """Return a value of an optional or union type: the first type that fits, with text tried last."""
    if value is None and NoneType in options:
        return Built(None, None)
    rest = sorted((option for option in options if option is not NoneType), key=lambda option: option is str)
    if len(rest) == 1 and rest[0] not in _WORDS:
        return _convert(value, rest[0], place)  # whose error is more precise
    for option in rest:
        try:
            return _convert(value, option, place)
        except RecipeError:
            continue
    raise place.error(value, hint)


def _items(value: Any, kind: type[Any], options: tuple[Any, ...], hint: Any, place: _Place) -> list[Built]:
    """Return the items of a list or a tuple; one value alone is a list of one."""
    fixed = kind is tuple and options[-1] is not ...
    if isinstance(value, str) and not fixed:
        value = [value]
    if not isinstance(value, list) or (fixed and len(value) != len(options)):
        raise place.error(value, hint)
    types = options if fixed else options[:1] * len(value)
    pairs = enumerate(zip(value, types, strict=True))
    return [_convert(item, option, place.item(index)) for index, (item, option) in pairs]


def _scalar(value: Any, hint: Any, place: _Place) -> Any:
    if hint is Any and value is None:
        return None
    if isinstance(value, str):
        if hint is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if hint is int and _WHOLE.fullmatch(value) and abs(int(value)) < 2**63:
            return int(value)
        if hint is float and _NUMBER.fullmatch(value) and abs(float(value)) != float("inf"):
            return float(value)
        if hint in (str, Any):
            return value
    raise place.error(value, hint)


def describe(hint: Any) -> str:
    """Return a type in words, for messages."""
    kind, options = get_origin(hint) or hint, get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if kind in (Union, UnionType):
        return " or ".join(map(describe, options))
    if kind is Literal:
        return f"one of {', '.join(str(option) or repr(option) for option in options)}"
    if kind is list or (kind is tuple and options[-1:] == (...,)):
        return f"a list, each item {describe((options or (Any,))[0])}"
    if kind is tuple:
        return f"a list of {len(options)}: {', '.join(map(describe, options))}"
    if kind is dict:
        return f"a mapping, each value {describe((options or (str, Any))[1])}"
    return "a mapping" if is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def plain(value: Any) -> Any:
    """Return dataclasses as mappings of their fields, tuples as lists."""
    if is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in hints(type(value))}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else value
