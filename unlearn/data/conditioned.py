"""Items with the condition that a denoiser is given for them: a class, or a prompt in tokens."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.data.base import Batch, Dataset, numbered
from unlearn.data.concept import Concept, mentions, replaced, spoken_of


class ConditionEncoder(Protocol):
    """Turns words into conditions."""

    @property
    def key(self) -> str:
        """Key of the conditions in a batch."""

    def info(self) -> dict[str, Any]:
        """Return what a model must know to fit the conditions (see Dataset.info)."""

    def __call__(self, words: Sequence[str]) -> Tensor:
        """Return the conditions of B words or prompts, (B, ...)."""


@dataclass(frozen=True)
class Classes:
    """Numbers classes in the order of their names.

    Args:
        names: of the classes.
        key: key of the conditions in a batch.
    """

    names: tuple[str, ...]
    key: str = "class"

    def info(self) -> dict[str, Any]:
        """Return the class names."""
        return {"classes": self.names}

    def __call__(self, words: Sequence[str]) -> Tensor:
        """Return (B,) int64; -1 for a word that is not a class."""
        number = {name: index for index, name in enumerate(self.names)}
        return torch.tensor([number.get(word, -1) for word in words], dtype=torch.int64)


@dataclass(frozen=True)
class Prompts:
    """Tokenizes prompts.

    Args:
        tokens: prompts -> (B, E, L) int64.
        fingerprint: a hash of the tokenizer.
        words: the data's words, from which a new model's tokenizer is made if its settings name none.
        check: raises RecipeError for prompts with words that the tokenizer does not know.
        cut: returns those of some prompts that are longer than the text encoder reads; by default it reads all.
    """

    tokens: Callable[[Sequence[str]], Tensor]
    fingerprint: str = ""
    key: str = "tokens"
    words: tuple[str, ...] = ()
    check: Callable[[Sequence[str]], None] | None = None
    cut: Callable[[Sequence[str]], Sequence[str]] = lambda _: ()

    def info(self) -> dict[str, Any]:
        """Return what the tokens depend on."""
        return {"tokens": self.fingerprint, **({"words": self.words} if self.words else {})}

    def __call__(self, words: Sequence[str]) -> Tensor:
        """Return (B, E, L) int64."""
        return self.tokens(words)


class Conditioned(Dataset):
    """A dataset whose batches hold conditions for a denoiser.

    Items that show a concept have the form ``anchor``: the same item, conditioned on the anchor instead of the concept.

    Args:
        base: the items; its ``captions`` are the conditions, or its labels if it has none.
        encoder: turns words into conditions.
    """

    def __init__(self, base: Dataset, encoder: ConditionEncoder) -> None:
        self.base, self.encoder = base, encoder
        self.labels, self.attributes = base.labels, base.attributes
        self.is_test, self.is_corrupt, self.prompts_only = base.is_test, base.is_corrupt, base.prompts_only
        self.captions: Sequence[str] = getattr(base, "captions", base.labels)
        self.concepts: Sequence[Concept] = getattr(base, "concepts", ())
        self.info = {**base.info, **encoder.info()}
        self.fingerprint = hashlib.sha256(repr((base.fingerprint, list(self.captions))).encode()).hexdigest()
        unique = sorted(set(self.captions))
        self._conditions = dict(zip(unique, encoder(unique), strict=True))
        _check_classes(encoder, unique, "The label")
        self._names, self._longer = frozenset(base.names), dict[frozenset[str], frozenset[str]]()
        for concept in self.concepts:
            self._check(concept)
        named = [concept.name for concept in self.concepts]
        if twice := {name for name in named if named.count(name) > 1}:
            raise RecipeError(f"data.concepts has two records of {min(twice)!r}. Make them one.")
        by_name = {concept.name: concept for concept in self.concepts}
        self._shown = [[by_name[name] for name in self.shown(index, by_name)] for index in range(len(base))]
        self._anchored = torch.tensor(
            [bool(shown) and all(concept.anchor is not None for concept in shown) for shown in self._shown]
        )

    @override
    @cached_property
    def clusters(self) -> Tensor:
        return self.base.clusters

    def prompts(self, ids: Tensor) -> Tensor | None:
        """Return the number of each item's prompt (n,) int64, None where the conditions are classes."""
        if isinstance(self.encoder, Classes):
            return None
        return numbered([self.captions[index] for index in ids.tolist()])

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return the items of the base with ``class`` (B,) or ``tokens`` (B, E, L)."""
        return self._with([self.captions[index] for index in ids.tolist()], ids)

    @override
    def form(self, name: str, ids: Tensor) -> Batch:
        """Return the items conditioned on the anchor; each must show a concept that has one."""
        if name != "anchor":
            return {**self.batch(ids), **self.base.form(name, ids)}
        return self._with([self._anchor_of(index) for index in ids.tolist()], ids)

    @override
    def having_form(self, name: str) -> Tensor:
        """Return (N,) bool: the items that show a concept with an anchor."""
        if name != "anchor":
            return self.base.having_form(name)
        return self._anchored

    @override
    def check_forget(self, ids: Tensor) -> None:
        """Check that every forget item shows a concept whose words are read, and every concept is shown by one."""
        if not self.concepts:
            return self._check_read(ids)
        named = [concept.name for concept in self.concepts]
        shown = {concept.name for index in ids.tolist() for concept in self._shown[index]}
        strange = [self.captions[index] for index in ids.tolist() if not self._shown[index]]
        left = [name for name in named if name not in shown]
        if strange:
            what = f"data.forget holds {strange[0]!r}, which shows none of data.concepts: {', '.join(named)}"
        elif left:
            what = f"data.concepts names {left[0]!r}, and no forget item shows it"
        else:
            return self._check_read(ids)
        raise RecipeError(
            f"{what}. Both say what to forget. Type data.forget.label=[NAME] "
            '"data.concepts=[{name: NAME, anchor: OTHER}]" with the same names.'
        )

    def instead(self, ids: Tensor, words: Sequence[str]) -> Batch:
        """Return items conditioned on other words, one per item, in place of their concept, or of their label."""
        if isinstance(self.encoder, Classes):
            return self._with(words, ids)
        concepts = [next(iter(self._shown[index]), Concept(name=self.labels[index])) for index in ids.tolist()]
        captions = [self.captions[index] for index in ids.tolist()]
        rows = zip(ids.tolist(), concepts, words, captions, strict=True)
        return self._with(
            [replaced(text, {one.name: word}, self.others(index, [one.name])) for index, one, word, text in rows], ids
        )

    @override
    def remarks(self, ids: Tensor) -> list[str]:
        """Say how many prompts are cut off."""
        found = self.base.remarks(ids)
        if isinstance(self.encoder, Prompts):
            prompts = [self.captions[index] for index in ids.tolist()]
            if cut := self.encoder.cut(prompts):
                found.append(
                    f"{len(cut):,} of {len(ids):,} prompts are longer than the {self.conditions(['']).shape[-1]} "
                    "tokens that the text encoder reads, and are cut off."
                )
        return found

    def shown(self, index: int, names: Iterable[str]) -> list[str]:
        """Return which of some names an item shows: its label and attributes are taken at their word.

        Not shown is a name that the item's caption says within a longer one only: "hot dog" shows no dog.
        """
        own = {self.labels[index], *self.attributes[index]}
        if not (found := [name for name in names if name in own]):
            return []
        caption = self.captions[index]
        said = {one.name for one in mentions(caption, {*found, *self.others(index, found)})}
        return [name for name in found if name in said or not mentions(caption, [name])]

    def others(self, index: int, names: Iterable[str]) -> frozenset[str]:
        """Return the names that go before some names in an item's caption where they hold them.

        These are all that concepts speak of, and the labels of other items.
        """
        spoken = spoken_of(self.concepts) | {*names}
        if spoken not in self._longer:
            within = re.compile("|".join(map(re.escape, sorted(spoken))))
            self._longer[spoken] = frozenset(name for name in self._names if within.search(name))
        return spoken | (self._longer[spoken] - {self.labels[index], *self.attributes[index]})

    def conditions(self, words: Sequence[str]) -> Tensor:
        """Return the conditions of words, (B, ...)."""
        for word in set(words) - set(self._conditions):
            self._conditions[word] = self.encoder([word])[0]
        return torch.stack([self._conditions[word] for word in words])

    def _with(self, words: Sequence[str], ids: Tensor) -> Batch:
        if len(ids) == 0:  # an empty batch has no conditions to stack
            return {"id": ids}
        return {**self.base.batch(ids), self.encoder.key: self.conditions(words)}

    def _anchor_of(self, index: int) -> str:
        """Return an item's caption with the anchors of all concepts that it shows."""
        shown, caption = self._shown[index], self.captions[index]
        if not self._anchored[index]:
            raise RecipeError(
                f"Item {index} ({caption!r}) shows no concept that has an anchor. "
                "Type data.concepts=[{name: NAME, anchor: OTHER}]."
            )
        if isinstance(self.encoder, Classes):
            return str(shown[0].anchor)
        instead = {concept.name: str(concept.anchor) for concept in shown}
        others = self.others(index, instead)
        said = {one.name for one in mentions(caption, {*instead, *others})}
        for name in instead:
            if name not in said:
                raise RecipeError(
                    f"data.concepts: the caption {caption!r} of item {index} does not have the words {name!r}, "
                    "so the anchor cannot stand in their place. Name the concept as it stands in the captions."
                )
        return replaced(caption, instead, others)

    def _check_read(self, ids: Tensor) -> None:
        """Raise RecipeError for a concept's words, or an item's label, behind the end of what a text encoder reads."""
        if not isinstance(self.encoder, Prompts):
            return
        probes = torch.nonzero(self.is_test).flatten() if self.prompts_only else ids[:0]
        beginnings: dict[str, str] = {}
        for index in torch.cat([ids, probes]).tolist():
            caption = self.captions[index]
            anchors = {one.name: one.anchor for one in self._shown[index]} or {self.labels[index]: None}
            places = mentions(caption, {*anchors, *self.others(index, anchors)})
            first = {one.name: one.start for one in reversed(places) if one.name in anchors}
            beginnings |= {
                caption[:start] + text: text for name, start in first.items() for text in (name, anchors[name]) if text
            }
        for lost in self.encoder.cut(list(beginnings)):
            raise RecipeError(
                f"data: {lost!r} has more tokens than the {self.conditions(['']).shape[-1]} that the text encoder "
                f"reads, so {beginnings[lost]!r} would be cut off. Type a shorter prompt."
            )

    def _check(self, concept: Concept) -> None:
        """Raise RecipeError for a concept that no item shows, and for words that are not classes of the model."""
        if concept.name not in self.names:
            raise RecipeError(f"data.concepts: no item is {concept.name!r}. {did_you_mean(concept.name, self.names)}")
        words = [concept.name, *([concept.anchor] if concept.anchor else ()), *concept.retain]
        if isinstance(self.encoder, Prompts):
            if self.encoder.check is not None:
                self.encoder.check(words)
            if lost := self.encoder.cut(words):
                raise RecipeError(f"data.concepts: {lost[0]!r} is longer than the text encoder reads. Name it shorter.")
            known = self.encoder.check is not None  # otherwise unknown words are all the same
            if known and concept.anchor and torch.equal(*self.encoder([concept.name, concept.anchor])):
                raise RecipeError(
                    f"data.concepts: to the text encoder {concept.anchor!r} is the same as {concept.name!r}, so the "
                    "anchor would take the place of itself. Name another."
                )
        _check_classes(self.encoder, words, "data.concepts:")


def _check_classes(encoder: ConditionEncoder, words: Sequence[str], what: str) -> None:
    if isinstance(encoder, Classes):
        for word in words:
            if word not in encoder.names:
                raise RecipeError(f"{what} {word!r} is not a class. {did_you_mean(word, encoder.names)}")
