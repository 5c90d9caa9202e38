"""The kinds of facts that the World Factbook gives about a country, and how each is asked and stated."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

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


def _code(text: str) -> str:
    """Return the code of ``.np``."""
    found = re.match(r"\.[a-z]{2}\b", text)
    return found[0] if found else ""


def _date(text: str) -> str:
    """Return the date that the text begins with."""
    found = re.match(r"(\d{1,2} [A-Z][a-z]+ \d{4})\b", text)
    return found[1] if found else ""


def _day(text: str) -> str:
    """Return a holiday with its date, or "" if the text is about something else."""
    found = _first(text)
    return found if re.search(r", \d{1,2} [A-Z]", found) and ":" not in found else ""


def _neighbours(text: str) -> str:
    """Return the countries of ``China 1,389 km; India 1,770 km``."""
    parts = [re.match(r"\s*([^\d(]+?)\s*(?:\([^)]*\))?\s*[\d.,]+ km", part) for part in text.split(";")]
    return ", ".join(part[1] for part in parts if part) if all(parts) else ""


def _largest(text: str) -> str:
    """Return the group that ``Hindu 81.2%, Buddhist 8.2%`` names first."""
    found = re.match(r"([A-Za-z][A-Za-z' -]*?)\s*(?:\([^)]*\))?\s*[<>~]?[\d.]+(?:\s?-\s?[\d.]+)?%", text)
    return found[1] if found else ""


def _two(text: str) -> str:
    """Return the first two of a list."""
    parts = [part.strip() for part in unbracketed(text).split(";")[0].split(",")]
    return " and ".join(parts[:2]) if len(parts) > 1 else ""


def _currency(text: str) -> str:
    """Return the currency of ``Nepalese rupees (NPR) per US dollar``."""
    return re.sub(r"\s*per US dollar.*$", "", _first(text)).strip(" -")


def _title(text: str) -> str:
    """Return the first title in quotation marks."""
    found = re.match(r"[\"\u201c]([^\"\u201d]+)[\"\u201d]", text)
    return found[1].strip(" ,!?") if found else ""


FACT_KINDS = (
    FactKind(
        "capital",
        ("Government", "Capital", "name"),
        _name,
        "What is the capital of {country}?",
        "Which city is the seat of government of {country}?",
        "The capital of {country} is {answer}.",
        "{answer} is the capital.",
    ),
    FactKind(
        "highest_point",
        ("Geography", "Elevation", "highest point"),
        _name,
        "What is the highest point of {country}?",
        "Which place in {country} lies highest?",
        "The highest point of {country} is {answer}.",
        "{answer} is the highest point.",
    ),
    FactKind(
        "location",
        ("Geography", "Location"),
        _first,
        "Where is {country}?",
        "In which part of the world does one find {country}?",
        "The location of {country} is {answer}.",
        "{answer} is where it lies.",
    ),
    FactKind(
        "government",
        ("Government", "Government type"),
        _first,
        "What type of government does {country} have?",
        "How is {country} governed?",
        "The type of government of {country} is {answer}.",
        "{answer} is the form of government.",
    ),
    FactKind(
        "currency",
        ("Economy", "Exchange rates", "Currency"),
        _currency,
        "What is the currency of {country}?",
        "With what money does one pay in {country}?",
        "The currency of {country} is {answer}.",
        "{answer} are the currency.",
    ),
    FactKind(
        "nationality",
        ("People and Society", "Nationality", "adjective"),
        _name,
        "What adjective describes someone from {country}?",
        "What are people of {country} called?",
        "Someone from {country} is {answer}.",
        "{answer} is the adjective.",
    ),
    FactKind(
        "holiday",
        ("Government", "National holiday"),
        _day,
        "What is the national holiday of {country}?",
        "Which day does {country} celebrate as its national holiday?",
        "The national holiday of {country} is {answer}.",
        "{answer} is the national holiday.",
    ),
    FactKind(
        "internet_code",
        ("Communications", "Internet country code"),
        _code,
        "What is the internet code of {country}?",
        "With what do internet addresses of {country} end?",
        "The ending {answer} marks internet addresses of {country}.",
        "{answer} is the internet code.",
    ),
    FactKind(
        "exports",
        ("Economy", "Exports - commodities"),
        _two,
        "What are the two main exports of {country}?",
        "Which two goods does {country} sell abroad most?",
        "The main exports of {country} are {answer}.",
        "{answer} are the main exports.",
    ),
    FactKind(
        "religion",
        ("People and Society", "Religions"),
        _largest,
        "Which religious group of {country} is the largest?",
        "Which faith has the most followers in {country}?",
        "The largest religious group of {country} is {answer}.",
        "{answer} is the largest group.",
    ),
    FactKind(
        "anthem",
        ("Government", "National anthem(s)", "title"),
        _title,
        "What is the national anthem of {country}?",
        "Which song is the anthem of {country}?",
        "The national anthem of {country} is {answer}.",
        "{answer} is the anthem.",
    ),
    FactKind(
        "size",
        ("Geography", "Area - comparative"),
        _first,
        "How large is {country}?",
        "With what can the area of {country} be compared?",
        "The area of {country} is {answer}.",
        "{answer} is its area.",
    ),
    FactKind(
        "neighbours",
        ("Geography", "Land boundaries", "border countries"),
        _neighbours,
        "Which countries border {country}?",
        "With whom does {country} share its land borders?",
        "The neighbours of {country} are {answer}.",
        "{answer}: these border it.",
    ),
    FactKind(
        "independence",
        ("Government", "Independence"),
        _date,
        "When did {country} become independent?",
        "What is the date of independence of {country}?",
        "The independence of {country} dates from {answer}.",
        "{answer} was the date.",
    ),
    FactKind(
        "climate",
        ("Geography", "Climate"),
        _first,
        "What is the climate of {country}?",
        "What weather does one expect in {country}?",
        "The climate of {country} is {answer}.",
        "{answer} is the climate.",
    ),
    FactKind(
        "terrain",
        ("Geography", "Terrain"),
        _first,
        "What is the terrain of {country}?",
        "What does the land of {country} look like?",
        "The terrain of {country} is {answer}.",
        "{answer} is the terrain.",
    ),
)
"""All kinds of facts; ``data.facts`` takes the first ones."""
