"""Merges recipe files and command-line settings into one tree of text, each value with its origin. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from unlearn.config import packaged, registry
from unlearn.config.arguments import split
from unlearn.config.yaml_io import Tree, from_python, parse
from unlearn.core.errors import RecipeError, did_you_mean, shorten


class Given(NamedTuple):
    """A value and its origin: a file name, ``command line`` or ``call``.

    ``firm`` values override the tables of settings (config.presets): those of the command line, of a call, and of a
    file that builds on the one with the tables.
    """

    value: Tree
    origin: str
    firm: bool = False


Node: TypeAlias = "Given | dict[str, Node]"


def bare(node: object) -> Any:
    """Return the plain values, without origins."""
    if isinstance(node, Given):
        return node.value
    return {key: bare(item) for key, item in node.items()} if isinstance(node, dict) else node


def written(node: object) -> str:
    """Return the origin of a value as messages show it, e.g. `` (command line)``."""
    while isinstance(node, dict) and node:
        node = next(iter(node.values()))
    return f" ({node.origin})" if isinstance(node, Given) and node.origin else ""


COMPONENTS: dict[str, registry.Kind] = {
    "model": "model",
    "data": "data",
    "combine": "combination",
    "scope": "scope",
    "edit": "edit",
    "guard": "guard",
    "distil": "objective",
}
"""Parts that are one component."""
TERMS = ("forget", "retain")
"""Parts that are one objective or a mapping of several. While recipes are merged both are mappings of key -> settings;
the key of a single objective is ``SINGLE``."""
SINGLE = ""
_ENTRIES = ("evaluate", "gate", *TERMS)
"""Mappings of named entries; null drops one."""
_MAX_FILES = 64


def read(recipe: str | Path | Mapping[str, object]) -> tuple[str, dict[str, Node]]:
    """Return a recipe's name and its values, those of its bases included."""
    reader = _Reader()
    if isinstance(recipe, Mapping):
        tree = from_python(recipe, "the recipe")
        assert isinstance(tree, dict)
        base = tree.get("base")
        return (_stem(base) if isinstance(base, str) else "recipe"), reader.lay({}, tree, "call", Path(), ())
    return _stem(str(recipe)), reader.open({}, str(recipe), Path(), ())


def override(node: dict[str, Node], settings: Sequence[str]) -> dict[str, Node]:
    """Return the values after applying ``key=value`` settings, one after the other."""
    for setting in settings:
        key, text = split(setting)
        path = _path(key, node)
        tree = _value(setting, text)
        _refuse_hidden_term(node, path, text)
        for part in reversed(path):
            tree = {part: tree}
        node = merge(node, given(tree, "command line", firm=True))  # type: ignore[assignment]
    return node


def named_entries(part: str, settings: Sequence[str], entries: Mapping[str, object]) -> set[str]:
    """Return which entries of a part settings name, by their keys or in a mapping; ``entries`` are those there are."""
    named: set[str] = set()
    for setting in settings:
        key, text = split(setting)
        path = _path(key, {part: entries})
        if path[0] == part:
            tree = _value(setting, text)
            named |= {path[1]} if path[1:] else set(tree) if isinstance(tree, dict) else set()
    return named


def _path(key: str, node: Mapping[str, object]) -> list[str]:
    """Return the keys that lead to a value; that of an entry may hold dots (a class by its path): the longest wins."""
    part, _, rest = key.partition(".")
    entries = node.get(part)
    if part in _ENTRIES and isinstance(entries, Mapping):
        within = [entry for entry in entries if entry and f"{rest}.".startswith(f"{entry}.")]
        if entry := max(within, key=len, default=""):
            return [part, entry, *filter(None, rest[len(entry) + 1 :].split("."))]
    return key.split(".")


def _value(setting: str, text: str) -> Tree:
    """Return the value of a setting: YAML where it begins as a list, a mapping or quotes, else the text itself."""
    if text[:1] in ("[", "{", '"', "'"):
        return parse(text, shorten(setting))
    return None if text in ("", "~", "null") else text


def _refuse_hidden_term(node: dict[str, Node], path: list[str], text: str) -> None:
    """Refuse ``forget.other.weight=1`` where forget is one objective: it would silently take its place."""
    part = node.get(path[0])
    if path[0] in TERMS and len(path) > 1 and isinstance(part, dict) and SINGLE in part:
        name = bare(part[SINGLE]).get("name")
        if path[1] == name:
            remedy = f"write {'.'.join((path[0], *path[2:]))}={text}" if path[2:] else f"write {path[0]}.SETTING=VALUE"
            raise RecipeError(f"{'.'.join(path)}: {path[0]} is one objective, {name}; {remedy}.")
        if registry.is_registered("objective", path[1]):
            raise RecipeError(
                f"{'.'.join(path)}: {path[0]} is one objective, {name}. To have several, write "
                f"{path[0]}={{{name}: {{}}, {path[1]}: {{}}}}."
            )


class _Reader:
    """Reads files and their bases, and lays each over the values so far; refuses cycles and too many files."""

    def __init__(self) -> None:
        self.read = 0

    def open(self, under: dict[str, Node], name: str, folder: Path, chain: tuple[str, ...]) -> dict[str, Node]:
        """Lay a packaged recipe, or a file relative to ``folder``, over the values so far."""
        self.read += 1
        if self.read > _MAX_FILES:
            raise RecipeError(f"over {_MAX_FILES} files are read through 'base:', the last {name}; name fewer.")
        document = packaged.read(name, "recipe", folder)
        chain = (*chain, document.identity)
        if document.identity in chain[:-1]:
            raise RecipeError(f"{document.origin}: 'base:' goes round in a circle: {' -> '.join(chain)}.")
        return self.lay(under, document.tree, document.origin, document.folder, chain)

    def lay(
        self, under: dict[str, Node], tree: dict[str, Tree], origin: str, folder: Path, chain: tuple[str, ...]
    ) -> dict[str, Node]:
        """Lay the bases of a tree, in order, and then the tree itself over the values so far."""
        base = tree.pop("base", None)
        for name in base if isinstance(base, list) else [] if base is None else [base]:
            if not isinstance(name, str):
                raise RecipeError(f"{origin}: base is {shorten(base)}; it must be a recipe or a list of recipes.")
            under = self.open(under, name, folder, chain)
        # what builds on a file with tables overrides the tables' entries
        firm = origin == "call" or "tables" in under
        return merge(under, given(tree, origin, firm))  # type: ignore[return-value]


def _stem(name: str) -> str:
    return (re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem) or "recipe") if packaged.is_path(name) else name


def given(tree: Tree, origin: str, firm: bool = False) -> Node:
    """Attach an origin to every value of a tree."""
    if isinstance(tree, dict):
        return {key: given(value, origin, firm) for key, value in tree.items()}
    return Given(tree, origin, firm)


def merge(old: Node | None, new: Node, path: tuple[str, ...] = ()) -> Node:
    """Lay ``new`` over ``old``. A component whose name changes starts from its defaults; so does a bare name.

    Args:
        old: the values so far, or None.
        new: the values that take precedence.
        path: keys that lead to both in the recipe.
    """
    term = len(path) == 1 and path[0] in TERMS
    component = path[0] in COMPONENTS if len(path) == 1 else len(path) == 2 and path[0] in ("evaluate", *TERMS)
    if term:
        new = _by_key(new, old)
    if component and isinstance(new, Given) and isinstance(new.value, str):
        return {"name": new}
    if not isinstance(new, dict):
        return new
    if not isinstance(old, dict):
        old = {}
    if term and new and (SINGLE in old) != (SINGLE in new):
        name = bare(old.get(SINGLE, {})).get("name")
        old = {name: old[SINGLE]} if name in new else {}  # one of several now, it keeps its settings
    if component and "name" in new and bare(old.get("name", path[-1])) != bare(new["name"]):
        old = {}  # settings of another component mean nothing to this one
    merged = dict(old)
    for key, value in new.items():
        below = (*path, key)
        if isinstance(value, Given) and value.value is None and len(below) == 2 and path[0] in _ENTRIES:
            if key not in old:
                where = f"{'.'.join(below)}{written(value)}"
                raise RecipeError(f"{where} is null, but there is nothing to drop; for its defaults write {key}: {{}}.")
            del merged[key]
        else:
            merged[key] = merge(old.get(key), value, below)
    return merged


def _by_key(term: Node, old: Node | None) -> Node:
    """Return a forget or retain part as key -> settings, in whichever form it was written; null stays.

    It is several objectives if every key is an objective's name, is in ``old`` already, or has a value with a name; so
    it is if one key is an objective's name, and each has settings: then another key is a name that was misspelt.
    """
    if isinstance(term, Given):
        return {SINGLE: term} if isinstance(term.value, str) else term
    known = old if isinstance(old, dict) else {}
    named = [
        key in known or registry.is_registered("objective", key) or (isinstance(value, dict) and "name" in value)
        for key, value in term.items()
    ]
    misspelt = any(named) and all(isinstance(value, dict) for value in term.values())
    return term if "name" not in term and (all(named) or misspelt) else {SINGLE: term}


def unwrap(node: dict[str, Node]) -> dict[str, Node]:
    """Return the merged values as a resolved recipe has them: a single objective without a key of its own."""
    found = dict(node)
    for part in TERMS:
        entries = node.get(part)
        if isinstance(entries, dict) and isinstance(single := entries.get(SINGLE), dict):
            if "name" not in single:
                first = next(iter(single))
                raise RecipeError(
                    f"{part} names no objective{written(single)}; write {part}=NAME. {shorten(first)} is none; "
                    f"{did_you_mean(first, registry.names('objective'))}"
                )
            found[part] = single
    return found
