"""From recipe files and command-line arguments to one tree of text, each value with its origin. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from os.path import abspath, expanduser
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from unlearn.config import registry
from unlearn.config.yaml_io import MAX_CHARACTERS, Tree, from_python, parse
from unlearn.core.errors import RecipeError, did_you_mean, shorten


class Given(NamedTuple):
    """A value that somebody wrote, and where: a file name, ``command line`` or ``call``.

    It is ``firm`` where it stands above the tables of settings (config.presets): written on the command line, in a
    call, or in a file that builds on the one with the tables.
    """

    value: Tree
    origin: str
    firm: bool = False


Node: TypeAlias = "Given | dict[str, Node]"


def bare(node: object) -> Any:
    """Return what was given without its origins."""
    if isinstance(node, Given):
        return node.value
    return {key: bare(item) for key, item in node.items()} if isinstance(node, dict) else node


def written(node: object) -> str:
    """Return where something was written as it stands in messages, e.g. `` (command line)``."""
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
"""Parts that are one objective or a mapping of several."""
_MAX_FILES = 64


@cache
def names() -> list[str]:
    """Return the names of the packaged recipes; files that start with an underscore are only for ``base:``."""
    return sorted(name for name in _packaged() if not name.rpartition("/")[2].startswith("_"))


def read(recipe: str | Path | Mapping[str, object]) -> tuple[str, dict[str, Node]]:
    """Return a recipe's name and its values, those of its bases included."""
    reader = _Reader()
    if isinstance(recipe, Mapping):
        tree = from_python(recipe, "the recipe")
        assert isinstance(tree, dict)
        base = tree.get("base")
        return (_stem(base) if isinstance(base, str) else "recipe"), reader.lay({}, tree, "call", Path(), ())
    return _stem(str(recipe)), reader.open({}, str(recipe), Path(), ())


def override(node: dict[str, Node], arguments: Sequence[str]) -> dict[str, Node]:
    """Return the values with ``key=value`` arguments laid over them, one after the other."""
    for argument in arguments:
        key, equals, text = argument.partition("=")
        path = key.split(".")
        if not equals or not all(path):
            raise RecipeError(f"{shorten(argument)} is no setting; write key=value, such as optim.lr=1e-4.")
        value = text.strip()
        tree = parse(value, shorten(argument)) if value[:1] in ("[", "{", '"', "'") else _plain(value)
        _refuse_hidden_term(node, path)
        for part in reversed(path):
            tree = {part: tree}
        node = merge(node, given(tree, "command line", firm=True), ())  # type: ignore[assignment]
    return node


def _plain(text: str) -> Tree:
    return None if text in ("", "~", "null") else text


def _refuse_hidden_term(node: dict[str, Node], path: list[str]) -> None:
    """Refuse ``forget.other.weight=1`` where forget is one objective: it would silently take its place."""
    part = node.get(path[0])
    if path[0] in TERMS and len(path) > 1 and isinstance(part, dict) and isinstance(name := part.get("name"), Given):
        if registry.is_registered("objective", path[1]):
            raise RecipeError(
                f"{'.'.join(path)}: {path[0]} is one objective, {name.value}. To have several, write "
                f"{path[0]}={{{name.value}: {{}}, {path[1]}: {{}}}}."
            )


class _Reader:
    """Reads files and their bases, and lays each over what was read before; circles and floods are refused."""

    def __init__(self) -> None:
        self.read = 0

    def open(self, under: dict[str, Node], name: str, folder: Path, chain: tuple[str, ...]) -> dict[str, Node]:
        """Lay a packaged recipe, or a file relative to ``folder``, over the values so far."""
        self.read += 1
        if self.read > _MAX_FILES:
            raise RecipeError(f"over {_MAX_FILES} files are read through 'base:', the last {name}; name fewer.")
        is_file = name.endswith((".yaml", ".yml"))
        path = folder / expanduser(name) if is_file else Path(f"{name}.yaml")
        origin = str(path)
        identity = abspath(path) if is_file else name
        if identity in chain:
            raise RecipeError(f"{origin}: 'base:' goes round in a circle: {' -> '.join((*chain, identity))}.")
        tree = parse(_text_of(path) if is_file else _packaged_text(name), origin)
        if not isinstance(tree, dict):
            raise RecipeError(f"{origin} must hold a mapping (model: ..., data: ...), not {shorten(tree)}.")
        return self.lay(under, tree, origin, path.parent if is_file else Path(), (*chain, identity))

    def lay(
        self, under: dict[str, Node], tree: dict[str, Tree], origin: str, folder: Path, chain: tuple[str, ...]
    ) -> dict[str, Node]:
        """Lay the bases of a tree, in order, and then the tree itself over the values so far."""
        base = tree.pop("base", None)
        for name in base if isinstance(base, list) else [] if base is None else [base]:
            if not isinstance(name, str):
                raise RecipeError(f"{origin}: base is {shorten(base)}; it must be a recipe or a list of recipes.")
            under = self.open(under, name, folder, chain)
        firm = origin == "call" or "tables" in under
        return merge(under, given(tree, origin, firm), ())  # type: ignore[return-value]


def _stem(name: str) -> str:
    if not name.endswith((".yaml", ".yml")):
        return name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem) or "recipe"


@cache
def _packaged() -> dict[str, Traversable]:
    """Return name -> file of every packaged recipe; studies are read by their own command."""
    found: dict[str, Traversable] = {}

    def walk(folder: Traversable, prefix: str) -> None:
        for item in folder.iterdir():
            if item.name.endswith(".yaml"):
                found[prefix + item.name.removesuffix(".yaml")] = item
            elif item.is_dir() and not item.name.startswith((".", "__")) and prefix + item.name != "studies":
                walk(item, f"{prefix}{item.name}/")

    walk(files("unlearn.recipes"), "")
    return found


def _packaged_text(name: str) -> str:
    if name not in _packaged():
        raise RecipeError(
            f"there is no recipe {shorten(name)}. {did_you_mean(name, names())} "
            "A file goes by its path, ending in .yaml."
        )
    return _packaged()[name].read_text(encoding="utf-8")


def _text_of(path: Path) -> str:
    try:
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {shorten(str(path))}. Packaged recipes: {', '.join(names())}.")
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise RecipeError(f"{path}: {path.stat().st_size} bytes are too many for a recipe.")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"the recipe {shorten(str(path))} cannot be read: {reason}.") from error


def given(tree: Tree, origin: str, firm: bool = False) -> Node:
    """Return what somebody wrote, with where."""
    if isinstance(tree, dict):
        return {key: given(value, origin, firm) for key, value in tree.items()}
    return Given(tree, origin, firm)


def merge(old: Node | None, new: Node, path: tuple[str, ...]) -> Node:
    """Lay ``new`` over ``old``. A component whose name changes starts from its defaults; so does a bare name."""
    if _may_be_a_name(path) and isinstance(new, Given) and isinstance(new.value, str):
        return {"name": new}
    if not isinstance(new, dict):
        return new
    if not isinstance(old, dict) or _replaces(old, new, path):
        old = {}
    merged = dict(old)
    for key, value in new.items():
        below = (*path, key)
        if _drops(value, below, "name" in {**old, **new}):
            if key not in old:
                where = f"{'.'.join(below)}{written(value)}"
                raise RecipeError(f"{where} is null, but there is nothing to drop; for its defaults write {key}: {{}}.")
            del merged[key]
        else:
            merged[key] = merge(old.get(key), value, below)
    return merged


def _is_component(path: tuple[str, ...]) -> bool:
    return (len(path) == 1 and path[0] in COMPONENTS) or (len(path) == 2 and path[0] == "evaluate")


def _may_be_a_name(path: tuple[str, ...]) -> bool:
    return _is_component(path) or (len(path) == 1 and path[0] in TERMS)


def _drops(value: Node, path: tuple[str, ...], single: bool) -> bool:
    """Whether a null takes an entry out of a mapping of named things."""
    entries = ("evaluate", "gate") if single else ("evaluate", "gate", *TERMS)
    return isinstance(value, Given) and value.value is None and len(path) == 2 and path[0] in entries


def _replaces(old: dict[str, Node], new: dict[str, Node], path: tuple[str, ...]) -> bool:
    """Whether ``new`` is another component than ``old``, so that the old one's settings mean nothing to it."""
    if len(path) == 1 and path[0] in TERMS:
        if "name" in old or "name" in new:
            return _value(old, "name") != _value(new, "name") if "name" in new else is_several(new)
        return False
    if _is_component(path) or (len(path) == 2 and path[0] in TERMS):
        implied = path[1] if len(path) == 2 else None
        return "name" in new and _value(old, "name", implied) != _value(new, "name")
    return False


def _value(node: dict[str, Node], key: str, otherwise: Tree = None) -> Tree:
    value = node.get(key)
    return value.value if isinstance(value, Given) else otherwise


def is_several(node: dict[str, Node]) -> bool:
    """Whether a forget or retain part is a mapping of several objectives rather than the settings of one."""
    if "name" in node or not node:
        return False
    return all(
        (isinstance(value, dict) and "name" in value) or registry.is_registered("objective", key)
        for key, value in node.items()
    )
