"""Strict JSON and atomic writes: a file is complete or not there."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any, BinaryIO

from unlearn.core.errors import RecipeError


def strict(value: Any) -> Any:
    """Return ``value`` as JSON allows it: nan and infinity become null, paths and other objects text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item) for item in value]
    return strict(value.tolist()) if hasattr(value, "tolist") else str(value)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON (RFC 8259) atomically."""
    write_text(path, json.dumps(strict(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically; half a character (a lone surrogate) becomes its escape, which JSON reads back."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_with(path, lambda file: file.write(content))


def write_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: a reader sees the old content or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # the content must be on the disk before the name is
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_text(path: Path, key: str = "") -> str:
    """Return the content of a text file, with or without a byte order mark.

    Raises:
        RecipeError: it cannot be read as UTF-8, or holds a null byte; the message names the line and the recipe's
            ``key``, if any.
    """
    who = f"{key}: {path}" if key else str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{who} cannot be read as UTF-8 text (line {line}: {error}). Save it as UTF-8.") from error
    except OSError as error:
        raise RecipeError(f"{who} cannot be read as UTF-8 text ({error}).") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise RecipeError(f"{who}:{line} holds a null byte, so it is no text, or UTF-16. Save it as UTF-8.")
    return text


def content_hash(folder: Path) -> str:
    """Return a hash of a folder's files, whatever their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(bytes.fromhex(file_hash(path)))
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return a hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def models_cache() -> Path:
    """Return the folder of trained and converted models, in $UNLEARN_CACHE or the user's cache folder."""
    return _cache() / "models"


def data_cache() -> Path:
    """Return the folder of prepared data, next to the models."""
    return _cache() / "data"


def _cache() -> Path:
    base = os.environ.get("UNLEARN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "unlearn")
    return Path(expanduser(base))
