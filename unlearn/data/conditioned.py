"""Items with the condition that a denoiser is given for them: a class, or a prompt in tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.data.base import Batch, Dataset
from unlearn.data.concept import Concept


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
    """

    tokens: Callable[[Sequence[str]], Tensor]
    fingerprint: str = ""
    key: str = "tokens"
    words: tuple[str, ...] = ()
    check: Callable[[Sequence[str]], None] | None = None

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
        for concept in self.concepts:
            self._check(concept)
        named = [concept.name for concept in self.concepts]
        if twice := {name for name in named if named.count(name) > 1}:
            raise RecipeError(f"data.concepts has two records of {min(twice)!r}. Make them one.")
        self._shown = [
            [concept for concept in self.concepts if concept.name == label or concept.name in attributes]
            for label, attributes in zip(self.labels, self.attributes, strict=True)
        ]
        self._anchored = torch.tensor(
            [bool(shown) and all(concept.anchor is not None for concept in shown) for shown in self._shown]
        )

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return the items of the base with ``class`` (B,) or ``tokens`` (B, E, L)."""
        return self._with([self.captions[index] for index in ids.tolist()], ids)

    @override
    def form(self, name: str, ids: Tensor) -> Batch:
        """Return the items conditioned on the anchor; each must show a concept that has one."""
        if name != "anchor":
            return super().form(name, ids)
        return self._with([self._anchor_of(index) for index in ids.tolist()], ids)

    @override
    def having_form(self, name: str) -> Tensor:
        """Return (N,) bool: the items that show a concept with an anchor."""
        if name != "anchor":
            return super().having_form(name)
        return self._anchored

    @override
    def check_forget(self, ids: Tensor) -> None:
        """Check that every forget item shows a concept, and that every concept is shown by a forget item."""
        if not self.concepts:
            return
        named = [concept.name for concept in self.concepts]
        shown = {concept.name for index in ids.tolist() for concept in self._shown[index]}
        strange = [self.captions[index] for index in ids.tolist() if not self._shown[index]]
        left = [name for name in named if name not in shown]
        if strange:
            what = f"data.forget holds {strange[0]!r}, which shows none of data.concepts: {', '.join(named)}"
        elif left:
            what = f"data.concepts names {left[0]!r}, and no forget item shows it"
        else:
            return
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
        replaced = [one.replaced_in(word, text) for one, word, text in zip(concepts, words, captions, strict=True)]
        return self._with(replaced, ids)

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
        for concept in shown:
            anchored = concept.anchored(caption)
            if anchored == caption:
                raise RecipeError(
                    f"data.concepts: the caption {caption!r} of item {index} does not have the words {concept.name!r}, "
                    "so the anchor cannot stand in their place. Name the concept as it stands in the captions."
                )
            caption = anchored
        return caption

    def _check(self, concept: Concept) -> None:
        """Raise RecipeError for a concept that no item shows, and for words that are not classes of the model."""
        if concept.name not in self.names:
            raise RecipeError(f"data.concepts: no item is {concept.name!r}. {did_you_mean(concept.name, self.names)}")
        words = [concept.name, *([concept.anchor] if concept.anchor else ()), *concept.retain]
        if isinstance(self.encoder, Prompts) and self.encoder.check is not None:
            self.encoder.check(words)
        _check_classes(self.encoder, words, "data.concepts:")


def _check_classes(encoder: ConditionEncoder, words: Sequence[str], what: str) -> None:
    if isinstance(encoder, Classes):
        for word in words:
            if word not in encoder.names:
                raise RecipeError(f"{what} {word!r} is not a class. {did_you_mean(word, encoder.names)}")
