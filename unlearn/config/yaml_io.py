"""YAML in which every value stays the text that was written: `no`, `1:30` and `012` are not converted."""

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
_PLAIN_TAGS = [f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")]
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def parse(text: str, where: str) -> Tree:
    """Return a YAML document as mappings, lists, text and None.

    Only an unquoted ``null``, ``~`` or nothing is None; every other scalar is the text as written.

    Args:
        text: one YAML document.
        where: file name or argument, for messages.

    Raises:
        RecipeError: no valid YAML, a repeated key, a tag, a merge key, or a document too large or too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{where}: {len(text)} characters are too many for a recipe; at most {MAX_CHARACTERS}.")
    try:
        _check_depth(text, where)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise RecipeError(f"{where}{line} is no valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise RecipeError(f"{where} is no valid YAML: {' '.join(str(error).split())}") from error
    return None if node is None else _value(node, where, 0, count())


def _check_depth(text: str, where: str) -> None:
    """Refuse deep nesting before composing: libyaml's composer recurses in C and would end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecipeError(f"{where} is nested over {MAX_DEPTH} levels deep.")


def _value(node: Any, where: str, depth: int, seen: Iterator[int]) -> Tree:
    """Return the value of a node; an alias is expanded each time, so it is a copy and counts at full size."""
    if next(seen) >= MAX_NODES or depth > MAX_DEPTH:  # an alias may contain itself
        raise RecipeError(
            f"{where} is too large: over {MAX_NODES} values or {MAX_DEPTH} levels once its aliases are expanded."
        )
    line = f"{where}, line {node.start_mark.line + 1}"
    if node.tag not in _PLAIN_TAGS:
        raise RecipeError(f"{line}: the tag {node.tag} is not allowed in a recipe; leave it out.")
    if isinstance(node, yaml.ScalarNode):
        return None if not node.style and node.value in _NULLS else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, where, depth + 1, seen) for item in node.value]
    found: dict[str, Tree] = {}
    for key_node, item in node.value:
        key = _value(key_node, where, depth + 1, seen)
        line = f"{where}, line {key_node.start_mark.line + 1}"
        if not isinstance(key, str) or not key:
            raise RecipeError(f"{line}: a key must be text, not {shorten(key)}.")
        if key == "<<":
            raise RecipeError(f"{line}: merge keys are not allowed; a recipe inherits by 'base:'.")
        if key in found:
            raise RecipeError(f"{line}: the key {shorten(key)} is given twice; remove one.")
        found[key] = _value(item, where, depth + 1, seen)
    return found


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
        comments: dotted key -> comment after that value, all in one column.
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
    """Write one value on one line, quoted only if necessary."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inline(key)}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inline, value)) + "]"
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    flow = yaml.safe_dump([value], default_flow_style=True, default_style=style, width=2**31, allow_unicode=True)
    return flow.strip()[1:-1].removeprefix("!!null ")
