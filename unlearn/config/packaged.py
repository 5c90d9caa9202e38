"""Finds and reads packaged recipes and studies, and a user's own files, without slow imports."""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from os.path import abspath, expanduser
from pathlib import Path
from typing import Literal, NamedTuple

from unlearn.config.yaml_io import MAX_CHARACTERS, Tree, parse
from unlearn.core.errors import RecipeError, did_you_mean, shorten

Kind = Literal["recipe", "study"]
_STUDIES = "studies/"


class Document(NamedTuple):
    """A file that was read.

    Attributes:
        tree: its content.
        origin: its name in messages.
        folder: what paths in it are relative to.
        identity: equal for two names of one file.
    """

    tree: dict[str, Tree]
    origin: str
    folder: Path
    identity: str


LISTED_BY: dict[Kind, str] = {"recipe": "python -m unlearn.run", "study": "python -m unlearn.study"}
"""The command that lists what is packaged."""


@cache
def names(kind: Kind) -> list[str]:
    """Return the names of what is packaged; files that start with an underscore are only for ``base:``."""
    return sorted(name for name in _packaged(kind) if not name.rpartition("/")[2].startswith("_"))


def is_path(name: str) -> bool:
    """Whether a name is the path of a file rather than the name of something packaged."""
    return name.endswith((".yaml", ".yml"))


def read(name: str, kind: Kind, folder: Path | None = None) -> Document:
    """Read something packaged by its name, or a file by its path, relative to ``folder``.

    Raises:
        RecipeError: nothing goes by this name, it cannot be read, or it holds no mapping.
    """
    if is_path(name):
        path = (folder or Path()) / expanduser(name)
        text, origin, identity = _text_of(path, kind), str(path), abspath(path)
    elif name in _packaged(kind):
        path = Path()
        text, origin, identity = _packaged(kind)[name].read_text(encoding="utf-8"), f"{name}.yaml", name
    else:
        raise RecipeError(
            f"there is no {kind} {shorten(name)}. {did_you_mean(name, names(kind)).partition('Allowed: ')[0]}"
            f"Type {LISTED_BY[kind]} for those that are packaged. A file goes by its path, ending in .yaml."
        )
    tree = parse(text, origin)
    if not isinstance(tree, dict):
        raise RecipeError(f"{origin} must hold a mapping (about: ..., ...), not {shorten(tree)}.")
    return Document(tree, origin, path.parent, identity)


@cache
def _packaged(kind: Kind) -> dict[str, Traversable]:
    """Return name -> file of every packaged recipe or study."""
    found: dict[str, Traversable] = {}

    def walk(folder: Traversable, prefix: str) -> None:
        for item in folder.iterdir():
            if item.name.endswith(".yaml") and prefix.startswith(_STUDIES) == (kind == "study"):
                found[(prefix + item.name).removesuffix(".yaml").removeprefix(_STUDIES)] = item
            elif item.is_dir() and not item.name.startswith((".", "__")):
                walk(item, f"{prefix}{item.name}/")

    walk(files("unlearn.recipes"), "")
    return found


def _text_of(path: Path, kind: Kind) -> str:
    try:
        if not path.is_file():
            raise RecipeError(
                f"there is no {kind} file {shorten(str(path))}. Type {LISTED_BY[kind]} for those that are packaged."
            )
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise RecipeError(f"{path}: {path.stat().st_size} bytes are too many for a {kind}.")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"the {kind} {shorten(str(path))} cannot be read: {reason}.") from error
