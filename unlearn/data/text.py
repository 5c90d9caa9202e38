"""Text items (a question and its answer, or a passage), tokenized for the model that reads them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from itertools import compress
from types import MappingProxyType
from typing import Protocol, Self

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.data.base import Batch, Dataset, numbered

OWN_FORMS = ("prompt", "refusal")
"""Forms that every question has, whatever its source."""


@dataclass(frozen=True)
class TextItem:
    """A question with its answer, or, if the question is empty, a passage.

    Args:
        question: the question, or empty.
        answer: its answer, or the passage.
        label: whom or what the item is about; ``data.forget.label`` selects by it.
        attributes: further labels.
        forms: other wordings by name, as (question, answer): ``paraphrased_answer``, ``paraphrased_question``,
            ``perturbed_0`` ... (the same question with a wrong answer), ``alternate`` (another plausible answer).
        goes_on: whether the passage continues in another item, so that no end token follows.
        cluster: what it shares with other items that vary together with it (an author, a passage); by default its
            label.
    """

    question: str
    answer: str
    label: str = ""
    attributes: frozenset[str] = frozenset()
    forms: dict[str, tuple[str, str]] = field(default_factory=dict)
    goes_on: bool = False
    cluster: str = ""


class Encoder(Protocol):
    """Tokenizes text for a model."""

    fingerprint: str
    """A hash of everything that the tokens depend on."""

    max_length: int
    """Most tokens per item; longer ones are cut at the end."""

    def length(self, passage: str) -> int:
        """Return the number of tokens of a passage, including those that begin and end it, before it is cut."""

    def encode(self, question: str, answer: str | None, goes_on: bool = False) -> tuple[list[int], list[int]]:
        """Return the tokens of the prompt and of the answer (none for None); a passage has an empty question.

        No end token follows an answer that ``goes_on``.
        """


class TextDataset(Dataset):
    """Text items; their batches need the encoder of a model (``encoded_by``).

    A batch is ``id`` (B,), ``tokens`` (B, T) int64, padded on the right with 0, ``mask`` (B, T) bool, True at real
    tokens, and ``answer`` (B, T) bool, True at the tokens to predict: those of the answer including its end, or all
    but the first of a passage. ``label`` (B,) is an index into ``names``.

    Args:
        items: training items first, so that the others do not change the key of a trained model.
        is_test: (N,) bool, items that no model is ever trained on.
        is_corrupt: (N,) bool, items with wrong content, trained on only to corrupt a model; none by default.
        encoder: of the model that reads them.

    Attributes:
        in_context: attribute -> questions with answers that are shown before the questions of items with it.
    """

    in_context: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType({})

    def __init__(
        self,
        items: Sequence[TextItem],
        is_test: Tensor,
        is_corrupt: Tensor | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.items = items
        self.labels = [item.label for item in items]
        self.attributes = [item.attributes for item in items]
        self.is_corrupt: Tensor = torch.zeros(len(items), dtype=torch.bool) if is_corrupt is None else is_corrupt
        self.is_test = is_test
        self.encoder = encoder
        self.info = {"text": encoder.fingerprint if encoder else None}
        trained = compress(items, self.is_trained.tolist())
        self.fingerprint = hashlib.sha256(repr([(i.question, i.answer, i.label) for i in trained]).encode()).hexdigest()
        self.forms = frozenset(OWN_FORMS).union(*(item.forms for item in items))
        self._encoded: dict[tuple[int, str], tuple[list[int], list[int]]] = {}

    def encoded_by(self, encoder: Encoder) -> TextDataset:
        """Return the same items, tokenized for a model."""
        read = TextDataset(self.items, self.is_test, self.is_corrupt, encoder)
        read.in_context = self.in_context
        return read

    def holding(self, items: Sequence[TextItem], is_test: Tensor, is_corrupt: Tensor | None = None) -> Self:
        """Return other items with the same encoder, chunking and in-context questions."""
        other = copy.copy(self)
        for cached in ("label_numbers", "clusters"):  # of the old items
            vars(other).pop(cached, None)
        TextDataset.__init__(other, items, is_test, is_corrupt, self.encoder)
        return other

    @override
    @cached_property
    def clusters(self) -> Tensor:
        return numbered([item.cluster or item.label for item in self.items])

    @override
    def kinds(self, item: int) -> frozenset[str]:
        one = self.items[item]
        return frozenset({"question" if one.question else "passage", *one.attributes, *one.forms})

    @override
    def content(self, ids: Tensor) -> str:
        """Return a hash of the words of these items alone."""
        words = [self.words(index) + ("goes on",) * self.items[index].goes_on for index in ids.tolist()]
        return hashlib.sha256(repr(words).encode()).hexdigest()

    @override
    def remarks(self, ids: Tensor) -> list[str]:
        """Say how many items are cut off. Raises RecipeError if nothing is left of any answer."""
        if self.encoder is None:
            return []
        limit = self.encoder.max_length
        lengths = [tuple(map(len, self.tokens(index))) for index in ids.tolist()]
        if lengths and not any(answer for _, answer in lengths):
            raise RecipeError(
                f"Nothing is left of any answer: the prompts alone fill model.max_length={limit} tokens. "
                "Type a larger model.max_length, or a shorter model.template."
            )
        full = sum(prompt + answer >= limit for prompt, answer in lengths)
        lost = sum(answer == 0 for _, answer in lengths)
        empty = f", and of {lost:,} no answer is left" if lost else ""
        return [f"{full:,} of {len(ids):,} reach model.max_length={limit} and may be cut{empty}"] if full else []

    @override
    def batch(self, ids: Tensor) -> Batch:
        return self.form("", ids)

    @override
    def form(self, name: str, ids: Tensor) -> Batch:
        """Return the items in another form, which each of them must have (see ``having_form``)."""
        pairs = [self.tokens(index, name) for index in ids.tolist()]
        return {**collate(pairs, ids), "label": self.label_numbers[ids]}

    @override
    def having_form(self, name: str) -> Tensor:
        if name in ("", *OWN_FORMS):
            return torch.tensor([name == "" or bool(item.question) for item in self.items], dtype=torch.bool)
        return torch.tensor([name in item.forms for item in self.items], dtype=torch.bool)

    def tokens(self, index: int, name: str = "") -> tuple[list[int], list[int]]:
        """Return the tokens of one item's prompt and answer."""
        if self.encoder is None:
            raise RecipeError("The data is text, and this model reads none. Type a language model, or other data=NAME.")
        if (index, name) not in self._encoded:
            question, answer = self.words(index, name)
            said = None if name == "prompt" else answer
            self._encoded[index, name] = self.encoder.encode(question, said, self.items[index].goes_on)
        return self._encoded[index, name]

    def words(self, index: int, name: str = "") -> tuple[str, str]:
        """Return the question and the answer of one item in a form."""
        item = self.items[index]
        if name in ("", "prompt"):
            return item.question, item.answer
        if name == "refusal":
            return item.question, refusals()[index % len(refusals())]
        return item.forms[name]


def collate(pairs: Sequence[tuple[list[int], list[int]]], ids: Tensor) -> Batch:
    """Return the batch of B items, without labels, given the tokens of each prompt and answer."""
    width = max((len(prompt) + len(answer) for prompt, answer in pairs), default=0)
    tokens = torch.zeros(len(pairs), width, dtype=torch.int64)
    mask, scored = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        whole = prompt + answer
        tokens[row, : len(whole)] = torch.tensor(whole)
        mask[row, : len(whole)] = True
        scored[row, max(1, len(prompt)) : len(whole)] = True  # no prediction for the first token
    return {"id": ids, "tokens": tokens, "mask": mask, "answer": scored}


@cache
def refusals() -> list[str]:
    """Return sentences that decline to answer."""
    return (files("unlearn") / "data" / "refusals.txt").read_text(encoding="utf-8").splitlines()
