"""Parses JSON lines and JSON lists for text sources (text_files.py, tofu.py); every error names file and line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError
from unlearn.core.files import read_text
from unlearn.core.shown import no_character


def read_values(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for every value of a file of JSON lines, or of one JSON list.

    Raises:
        RecipeError: the file is missing, unreadable, empty, or not JSON.
    """
    if not file.is_file():
        raise RecipeError(f"there is no file {file}. Type an existing file of JSON lines.")
    text = read_text(file)
    empty = True
    for place, value in _of_list(file, text) if text.lstrip().startswith("[") else _of_lines(file, text):
        empty = False
        yield place, value
    if empty:
        raise RecipeError(f"{file} holds no items. Write one JSON object per line.")


def read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of a file, as ``read_values`` does. Raises RecipeError for a value that is not an object."""
    for place, row in read_values(file):
        if not isinstance(row, dict):
            raise RecipeError(f"{place}: {_shown(row)} is not a JSON object. Write one object per line: {{...}}")
        yield place, row


def text_of(place: str, row: dict[str, Any], key: str) -> str:
    """Return the text under a key. Raises RecipeError if it is missing, not text, or blank."""
    if key not in row:
        raise RecipeError(f'{place}: there is no "{key}"; the keys are {", ".join(sorted(row)) or "none"}.')
    return _text(place, key, row[key])


def texts_of(place: str, row: dict[str, Any], key: str) -> list[str]:
    """Return the texts under a key, none if it is missing. Raises RecipeError if it is not a list of texts."""
    value = row.get(key, [])
    if not isinstance(value, list):
        raise RecipeError(f'{place}: "{key}" is {_shown(value)}; it must be a list of texts.')
    return [_text(place, key, entry) for entry in value]


def plain_text(place: str, value: Any) -> str:
    """Return a text, or the ``text`` of an object. Raises RecipeError if there is none."""
    return text_of(place, value, "text") if isinstance(value, dict) else _text(place, "text", value)


def _text(place: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise RecipeError(f'{place}: "{key}" is {_shown(value)}; it must be text, in quotation marks.')
    if not value.strip():
        raise RecipeError(f'{place}: "{key}" is empty.')
    if broken := no_character(value):
        raise RecipeError(f'{place}: "{key}" holds {broken}, which is no text. Write whole characters, as UTF-8.')
    return value


def _of_lines(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", _parsed(file, line, number)


def _of_list(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(_parsed(file, text)):
        yield f"{file}, entry {number}", row


def _parsed(file: Path, text: str, line: int = 1) -> Any:
    """Return the JSON value of a text that begins at a line of a file."""
    with reading(f"{file}:{line}"):  # json raises other errors too: nested too deep, a number of too many digits
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            place = f"{file}:{line + error.lineno - 1}"
            raise RecipeError(f"{place}: not JSON ({error.msg}, column {error.colno}).") from error


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
