"""What is looked at in a folder that somebody else made before any library reads it."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs left in place of the real one."""
LARGE = ("tokenizer.json", "vocab.json", "merges.json")
"""Files of entries of a vocabulary, which name no files."""


def check_folder(folder: Path) -> None:
    """Refuse a folder in which a file names another outside of it, or in which git-lfs left pointers.

    Args:
        folder: with all folders inside of it.

    Raises:
        RecipeError: one of them, or a JSON file that is broken.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise RecipeError(f"{path} is a pointer of git-lfs, not the file itself. Type: git lfs pull")
        if path.name.endswith(".index.json"):
            _check_shards(path)
        elif path.suffix == ".json" and path.name not in LARGE:
            for key, named in _texts(read_json(path)):
                if _is_outside(path.parent, folder, key, named):
                    raise RecipeError(
                        f"{path} names a file outside of the folder ({key}: {named[:200]!r}); only what lies in the "
                        "given folder is read. Copy the file into it and write its name there."
                    )


def check_link(path: Path, folder: Path) -> None:
    """Refuse a link in a folder of data that leads out of it. Raises RecipeError."""
    lies_inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
    if path.is_symlink() and lies_inside and not path.resolve().is_relative_to(folder.resolve()):
        raise RecipeError(
            f"{path} is a link that leads out of the folder, and only what lies in the given folder is read. Copy what "
            f"it leads to into it, or all at once: cp -rL {shlex.quote(str(folder))} NEW_FOLDER"
        )


def _check_shards(path: Path) -> None:
    shards = read_mapping(path).get("weight_map")
    if not isinstance(shards, dict):
        raise RecipeError(f"{path} has no weight_map. Copy the folder again.")
    for name, shard in shards.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise RecipeError(
                f"{path} says that {name[:100]!r} lies in {str(shard)[:200]!r}; shards lie beside their index, and "
                "nothing outside of the given folder is read. Copy the folder again."
            )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises RecipeError where it holds none."""
    with reading(path, "Copy the file again."):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises RecipeError where it holds none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds a {type(content).__name__}, not an object. Copy the file again.")
    return content


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all texts in a JSON value."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else ((key, item) for item in content)
        for name, item in pairs:
            yield from _texts(item, str(name))


def _is_outside(place: Path, folder: Path, key: str, named: str) -> bool:
    """Return whether a text in a file at ``place`` names a file that is there, and not inside of the given folder.

    Libraries take some names from the file's folder and others from the working directory. Where a link inside of the
    folder leads is no matter: it was not a file of the folder's that said so.
    """
    if not named or len(named) > 1024 or not named.isprintable():
        return False
    climbs = Path(named).is_absolute() or ".." in Path(named).parts
    if not climbs and (not key.endswith(("_file", "_files")) or (place / named).exists()):
        return False
    root = Path(os.path.abspath(folder))
    meant = (Path(os.path.abspath(place / named)), Path(os.path.abspath(named)))
    return any(path.is_file() and not path.is_relative_to(root) for path in meant)
