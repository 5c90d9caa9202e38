"""The kinds of facts that the World Factbook gives about a country, and how each is asked and stated."""

import html
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

LONGEST_ANSWER = 12
"""Most words of an answer."""


@dataclass(frozen=True)
class FactKind:
    """A kind of fact about a country: where the Factbook has it, and how it is asked and stated.

    Args:
        name: attribute of its items.
        path: keys that lead to the entry.
        read: the entry's cleaned text -> a short answer, or "" if it has none.
        question, paraphrase: two wordings, with ``{country}``.
        statement: a sentence, with ``{country}`` and ``{answer}``.
        carrier: a sentence that gives the answer first, with ``{answer}``.
    """

    name: str
    path: tuple[str, ...]
    read: Callable[[str], str]
    question: str
    paraphrase: str
    statement: str
    carrier: str


def clean(text: str) -> str:
    """Return the text without markup, notes and doubled spaces."""
    text = re.sub(r"<\s*(br|/?p)\b[^>]*>", " ", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", html.unescape(text)))
    text = re.split(r";?\s*\bnote\b\s*(?:\d\s*)?[:-]", text, maxsplit=1)[0]
    text = re.sub(r"^\s*metropolitan France\s*[:-]", "", text)
    return re.sub(r"\s+", " ", text.replace("\u2019", "'").replace("\u2018", "'")).strip(" ;,-")


def _first(text: str) -> str:
    """Return the text before the first semicolon, without brackets, cut to whole clauses of a bounded length."""
    text = unbracketed(text).split(";")[0].strip(" ,:")
    clauses = text.split(",")
    while len(clauses) > 1 and len(",".join(clauses).split()) > LONGEST_ANSWER:
        clauses.pop()
    return ",".join(clauses).strip()


def unbracketed(text: str) -> str:
    """Return the text without (nested) brackets and their content."""
    before = None
    while before != text:
        before, text = text, re.sub(r"\s*[(\[][^()\[\]]*[)\]]", "", text)
    return text.split("(")[0]


def _name(text: str) -> str:
    """Return a name alone, without a second name or figures after it."""
    return re.sub(r"\s-?\d[\d,.]*\s*m?\b.*$", "", re.split(r",| or |/", _first(text))[0]).strip()


def _day(text: str) -> str:
    """Return a holiday with its date, or "" if the text is about something else."""
    found = _first(text)
    return found if re.search(r", \d{1,2} [A-Z]", found) and ":" not in found else ""


def _neighbours(text: str) -> str:
    """Return the countries of ``China 1,389 km; India 1,770 km``."""
    parts = [re.match(r"\s*([^\d(]+?)\s*(?:\([^)]*\))?\s*[\d.,]+ km", part) for part in text.split(";")]
    return ", ".join(part[1] for part in parts if part) if all(parts) else ""


def _two(text: str) -> str:
    """Return the first two of a list."""
    parts = [part.strip() for part in unbracketed(text).split(";")[0].split(",")]
    return " and ".join(parts[:2]) if len(parts) > 1 else ""


def _currency(text: str) -> str:
    """Return the currency of ``Nepalese rupees (NPR) per US dollar``."""
    return re.sub(r"\s*per US dollar.*$", "", _first(text)).strip(" -")


def _match(pattern: str) -> Callable[[str], str]:
    """Return a reader of a pattern's only group, "" where the text does not begin with the pattern."""

    def read(text: str) -> str:
        found = re.match(pattern, text)
        return found[1] if found else ""

    return read


_READERS = {
    "code": _match(r"(\.[a-z]{2})\b"),
    "currency": _currency,
    "date": _match(r"(\d{1,2} [A-Z][a-z]+ \d{4})\b"),
    "day": _day,
    "first": _first,
    # the first group of "Hindu 81.2%, Buddhist 8.2%"
    "largest": _match(r"([A-Za-z][A-Za-z' -]*?)\s*(?:\([^)]*\))?\s*[<>~]?[\d.]+(?:\s?-\s?[\d.]+)?%"),
    "name": _name,
    "neighbours": _neighbours,
    "title": _match(r"[\"\u201c][ ,!?]*([^\"\u201d]+?)[ ,!?]*[\"\u201d]"),  # in quotation marks
    "two": _two,
}
_TABLE = tomllib.loads((files("unlearn.data.factbook") / "questions.toml").read_text(encoding="utf-8"))

FACT_KINDS = tuple(
    FactKind(name, **row | {"path": tuple(row["path"]), "read": _READERS[row["read"]]}) for name, row in _TABLE.items()
)
"""All kinds of facts, as ``questions.toml`` lists them; ``data.facts`` takes the first ones."""
