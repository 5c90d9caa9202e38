"""How text that data, models and files bring is shown: in terminals, in tables for spreadsheets, as names of files."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor, ends a line or turns its direction around, and halves of characters."""
_NO_CHARACTER = re.compile("[\x00\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet runs; the last four are the wide forms that some read as the first four."""
_LONGEST_NAME = 100


def printable(text: str) -> str:
    r"""Return text with control characters, line feeds and tabs aside, as escapes such as ``\x1b``."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def no_character(text: str) -> str:
    """Return what a text holds that tokenizers do not take, in words: half a character, a null byte; or nothing."""
    found = _NO_CHARACTER.search(text)
    if found is None:
        return ""
    return "a null byte" if found[0] == "\0" else f"half a character (the lone surrogate {printable(found[0])})"


def one_line(text: object) -> str:
    """Return a value as one printable line."""
    return printable(" ".join(str(text).split()))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV; a text that a spreadsheet would run begins with an apostrophe, numbers are untouched."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows(map(_cell, row) for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text, re.ASCII) is not None


def file_name(name: str) -> str:
    """Return a name as the name of a file: letters, digits, ``_``, ``-`` and ``.``; a changed one ends in a hash."""
    plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).lstrip(".")[:_LONGEST_NAME]
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
