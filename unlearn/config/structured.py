"""From text to a dataclass: each value is checked against its field's type, and each error names the full key."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from unlearn.config.compose import Given, Node, bare, written
from unlearn.config.yaml_io import Tree
from unlearn.core.errors import RecipeError, did_you_mean, shorten

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
MISSING = "???"
_CONFIGS: dict[type[Any], DictConfig] = {}
_HINTS: dict[type[Any], dict[str, Any]] = {}


class Built(NamedTuple):
    """A dataclass instance, and the same as plain mappings, lists, text and numbers with every default filled in."""

    value: Any
    tree: dict[str, Any]


def build(cls: type[Any], node: Node, key: str) -> Built:
    """Build a dataclass from the values given for its fields.

    Args:
        cls: a dataclass whose fields OmegaConf can hold.
        node: field name -> value; null or nothing takes all defaults.
        key: dotted key of this part in the recipe, for messages.

    Raises:
        RecipeError: unknown field, wrong type, missing value, or a value that the dataclass refuses.
    """
    if cls not in _CONFIGS:
        _CONFIGS[cls] = _structured(cls)
    given = _fields(cls, node, key, "")
    config = deepcopy(_CONFIGS[cls]) if given else _CONFIGS[cls]  # a copy is four times as fast as a new one
    try:
        for name, value in given.items():
            OmegaConf.update(config, name, _protect(value))
        built = OmegaConf.to_object(config)
        return Built(built, _plain(OmegaConf.to_container(config, resolve=True, structured_config_mode=SCMode.DICT)))
    except MissingMandatoryValue as error:
        where = f"{key}.{error.full_key}"
        raise RecipeError(f"{where} has no value; write {where}=...") from error
    except OmegaConfBaseException as error:
        raise RecipeError(f"{key}.{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        joint = "." if str(error).split()[:1] in [[name] for name in _hints(cls)] else ": "
        raise RecipeError(f"{key}{joint}{error}") from error


def _structured(cls: type[Any]) -> DictConfig:
    try:
        config = OmegaConf.structured(cls)
    except (OmegaConfBaseException, ValueError, TypeError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"the fields of {cls.__qualname__} cannot be written in a recipe: {reason}") from error
    _unfreeze(config)
    return config  # type: ignore[no-any-return]


def _unfreeze(config: DictConfig) -> None:
    """Let a frozen dataclass be filled in; the built object is frozen again."""
    OmegaConf.set_readonly(config, None)
    for name in config:
        if not OmegaConf.is_missing(config, name) and isinstance(config[name], DictConfig):
            _unfreeze(config[name])


def _fields(cls: type[Any], node: Node | Tree, key: str, origin: str) -> dict[str, Any]:
    """Return the values given for the fields of a dataclass, each of its field's type."""
    origin = node.origin if isinstance(node, Given) else origin
    value = node.value if isinstance(node, Given) else node
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(value, key, origin, f"a mapping of {', '.join(_hints(cls)) or 'nothing'}")
    hints = _hints(cls)
    for name, item in value.items():
        if name not in hints:
            where = written(item) or _by(origin)
            raise RecipeError(f"there is no key {shorten(f'{key}.{name}')}{where}. {did_you_mean(name, hints)}")
    return {name: convert(item, hints[name], f"{key}.{name}", origin) for name, item in value.items()}


def _hints(cls: type[Any]) -> dict[str, Any]:
    """Return field name -> type."""
    if cls not in _HINTS:
        hints = get_type_hints(cls)
        _HINTS[cls] = {field.name: hints[field.name] for field in fields(cls) if field.init}
    return _HINTS[cls]


def convert(node: Node | Tree, hint: Any, key: str, origin: str = "") -> Any:
    """Return one value as its type asks; ``origin`` is said in messages where the value does not carry its own."""
    origin = node.origin if isinstance(node, Given) else origin
    value = node.value if isinstance(node, Given) else node
    kind, options = get_origin(hint), get_args(hint)
    if value == MISSING:
        raise RecipeError(f"{key} has no value{_by(origin)}; write {key}=...")
    if kind in (Union, UnionType):
        return _one_of(value, options, hint, key, origin)
    if kind is Literal:
        matches = [option for option in options if value == str(option)]
        if not matches:
            raise _wrong(value, key, origin, describe(hint))
        return matches[0]
    if is_dataclass(hint) and isinstance(hint, type):
        return _fields(hint, value, key, origin)
    if hint is list or kind is list:
        return _items(value, (options or (Any,))[0], hint, key, origin)
    if hint is tuple or kind is tuple:
        return _tuple(value, options or (Any, ...), hint, key, origin)
    if hint is dict or kind is dict:
        if not isinstance(value, dict):
            raise _wrong(value, key, origin, describe(hint))
        return {
            name: convert(item, (options or (str, Any))[1], f"{key}.{name}", origin) for name, item in value.items()
        }
    return _scalar(value, hint, key, origin)


def _one_of(value: Any, options: tuple[Any, ...], hint: Any, key: str, origin: str) -> Any:
    """Return a value of an optional or a union type; the first type that fits is taken."""
    if value is None and NoneType in options:
        return None
    rest = [option for option in options if option is not NoneType]
    if len(rest) == 1 and rest[0] not in (bool, int, float, str):
        return convert(value, rest[0], key, origin)
    for option in sorted(rest, key=lambda option: option is str):
        try:
            return convert(value, option, key, origin)
        except RecipeError:
            continue
    raise _wrong(value, key, origin, describe(hint))


def _items(value: Any, item: Any, hint: Any, key: str, origin: str) -> list[Any]:
    """Return a list; one value alone is a list of one."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _wrong(value, key, origin, describe(hint))
    return [convert(part, item, f"{key}[{index}]", origin) for index, part in enumerate(value)]


def _tuple(value: Any, options: tuple[Any, ...], hint: Any, key: str, origin: str) -> tuple[Any, ...]:
    if len(options) == 2 and options[1] is ...:
        return tuple(_items(value, options[0], hint, key, origin))
    if not isinstance(value, list) or len(value) != len(options):
        raise _wrong(value, key, origin, describe(hint))
    pairs = enumerate(zip(value, options, strict=True))
    return tuple(convert(part, option, f"{key}[{index}]", origin) for index, (part, option) in pairs)


def _scalar(value: Any, hint: Any, key: str, origin: str) -> Any:
    if not isinstance(value, str):
        if hint is Any and value is None:
            return None
        raise _wrong(value, key, origin, describe(hint))
    if hint is bool and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if hint is int and _WHOLE.fullmatch(value) and abs(int(value)) < 2**63:
        return int(value)
    if hint is float and _NUMBER.fullmatch(value) and abs(float(value)) != float("inf"):
        return float(value)
    if hint in (bool, int, float):
        raise _wrong(value, key, origin, describe(hint))
    return value  # text, or a type that OmegaConf reads from text (an enumeration, a path)


def describe(hint: Any) -> str:
    """Say in words what a field takes."""
    kind, options = get_origin(hint), get_args(hint)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
    if hint in words:
        return words[hint]
    if kind in (Union, UnionType):
        return " or ".join(map(describe, options))
    if kind is Literal:
        return f"one of {', '.join(map(str, options))}"
    if kind is list or (kind is tuple and options[-1] is ...):
        return f"a list, each item {describe(options[0])}"
    if kind is tuple:
        return f"a list of {len(options)}: {', '.join(map(describe, options))}"
    if kind is dict:
        return f"a mapping, each value {describe(options[1])}"
    return "a mapping" if is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def _wrong(value: Any, key: str, origin: str, expected: str) -> RecipeError:
    where = key if len(key) <= 120 else f"{key[:117]}..."
    return RecipeError(f"{where} is {shorten(bare(value))}{_by(origin) or written(value)}; it must be {expected}.")


def _by(origin: str) -> str:
    return f" ({origin})" if origin else ""


def _protect(value: Any) -> Any:
    """Escape what OmegaConf would take for a reference of its own."""
    if isinstance(value, dict):
        return {key: _protect(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_protect, value))
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """Return what OmegaConf holds as plain mappings, lists, text and numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else getattr(value, "name", str(value))
