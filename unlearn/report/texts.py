"""What reports and model cards show of the texts that models wrote."""

from itertools import groupby
from typing import Any

from unlearn.config.schema import SUBJECTS
from unlearn.core.records import TextTable
from unlearn.report.read_run import RunFolder

LONGEST = 280
"""Most characters of a text that are shown; the run directory has the whole text."""


def text_tables(run: RunFolder) -> list[dict[str, Any]]:
    """Return every table of texts as the templates show it."""
    return [_shown(table) for table in run.text_tables]


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return the beginning of a text, with an ellipsis if more follows."""
    line = text.strip()
    return line if len(line) <= longest else f"{line[:longest].rstrip()} …"


def _shown(table: TextTable) -> dict[str, Any]:
    truth = table.columns.index(table.truth) if table.truth in table.columns else None
    kinds = [name if name in SUBJECTS else "" for name in table.columns]

    def cells(row: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "text": shortened(text),
                "whole": text if len(text.strip()) > LONGEST else "",
                "kind": kind,
                "same": bool(kind) and truth is not None and _words(text) == _words(row[truth]),
            }
            for kind, text in list(zip(kinds, row, strict=True))[1:]  # the first column names the group
        ]

    return {
        "title": table.title,
        "caption": table.caption,
        "columns": table.columns[1:],
        "groups": [
            {"name": name, "rows": [cells(row) for row in rows]}
            for name, rows in groupby(table.rows, key=lambda row: row[0])
        ],
    }


def _words(text: str) -> str:
    """Return the words of a text, without case and punctuation."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())
