"""Interpolation: `${optim.lr}` in a recipe stands for the value that the recipe gives for `optim.lr`."""

import re
from difflib import get_close_matches
from typing import Any

from unlearn.config.compose import Given, Node
from unlearn.config.yaml_io import Tree
from unlearn.core.errors import RecipeError, shorten

_REFERENCE = re.compile(r"\$\$\{|\$\{(?:\s*([A-Za-z_][\w.-]*)\s*\})?")
_MAX_CHAIN = 32
_MAX_CHARACTERS = 1_000_000

Path = tuple[str, ...]


def interpolate(node: dict[str, Node]) -> dict[str, Node]:
    """Replace ``${key}`` by the value of that key, and ``$${`` by the characters ``${``.

    Raises:
        RecipeError: the recipe does not give the key, references form a cycle, or values grow without bound.
    """
    return _References(node).walk(node, ())  # type: ignore[return-value]


def escape(value: Any) -> Any:
    """Escape values so that ``interpolate`` returns them unchanged."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


class _References:
    """Resolves references; each value is resolved once."""

    def __init__(self, root: dict[str, Node]) -> None:
        self.root = root
        self.done: dict[Path, Tree] = {}
        self.budget = _MAX_CHARACTERS

    def walk(self, node: Node, path: Path) -> Node:
        """Return a part of the tree with its references replaced."""
        if isinstance(node, dict):
            return {key: self.walk(value, (*path, key)) for key, value in node.items()}
        return Given(self.value(path, node, ()), node.origin)

    def value(self, path: Path, given: Given, chain: tuple[Path, ...]) -> Tree:
        """Return the resolved value at ``path``; ``chain`` holds the paths whose references led here."""
        if path in chain or len(chain) > _MAX_CHAIN:
            turns = " -> ".join(map(".".join, (*chain[:4], path)))
            raise RecipeError(f"{'.'.join(chain[0])}: the references go round in a circle or too deep: {turns}.")
        if path not in self.done:
            self.done[path] = self.replace(given.value, (*chain, path))
        return self.done[path]

    def replace(self, value: Tree, chain: tuple[Path, ...]) -> Tree:
        """Return a value with its references replaced; ``chain`` ends with the path of the value."""
        if isinstance(value, list):
            return [self.replace(item, chain) for item in value]
        if isinstance(value, dict):
            return {key: self.replace(item, chain) for key, item in value.items()}
        if value is None or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole and whole[1]:
            return self.follow(whole[1], chain)
        return _REFERENCE.sub(lambda match: self.within(match, chain), value)

    def within(self, match: re.Match[str], chain: tuple[Path, ...]) -> str:
        """Return the text of one reference inside a longer text."""
        where = ".".join(chain[-1])
        if match[0] == "$${":
            return "${"
        if match[1] is None:
            raise RecipeError(
                f"{where}: '${{' starts a reference such as ${{optim.lr}}; for the characters themselves write '$${{'."
            )
        value = self.follow(match[1], chain)
        if not isinstance(value, str):
            raise RecipeError(f"{where}: {match[0]} is {shorten(value)}; only text can stand within text.")
        return value

    def follow(self, key: str, chain: tuple[Path, ...]) -> Tree:
        """Return the value under a dotted key."""
        target: Node | None = self.root
        for part in key.split("."):
            target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, Given):
            near = get_close_matches(key, _keys(self.root), cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else "to refer to a default, write it in the recipe."
            raise RecipeError(f"{'.'.join(chain[-1])}: the recipe gives no value under {key}; {hint}")
        value = self.value(tuple(key.split(".")), target, chain)
        # values that refer to one another repeatedly double in size at each level
        self.budget -= _size(value)
        if self.budget < 0:
            raise RecipeError(f"{'.'.join(chain[0])}: the references grow over {_MAX_CHARACTERS} characters.")
        return value


def _size(value: Tree) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_size, value.values()))
    return 1 + sum(map(_size, value)) if isinstance(value, list) else 1 + len(value or "")


def _keys(node: Node, path: Path = ()) -> list[str]:
    if isinstance(node, Given):
        return [".".join(path)]
    return [key for name, value in node.items() for key in _keys(value, (*path, name))]
