"""Datasets with stable ids, and the forget / retain / holdout / test splits drawn from them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unlearn.core.boundary import promised
from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.randomness import Randomness
from unlearn.core.validation import PositiveInt, check_ranges
from unlearn.data.corruption import CORRUPTED, Corruption

Batch = dict[str, Tensor]


class Items(Batch):
    """A batch as the data gives it; what it does not hold is said in a sentence."""

    def __missing__(self, key: str) -> Tensor:
        held = ", ".join(map(repr, self))
        raise RecipeError(f"The items of the data have no {key!r}, which the recipe needs; they have {held}.")


class Dataset(ABC):
    """Items with ids 0 ... N-1 that never change meaning.

    Attributes:
        labels: one label per item, as text; "" for none.
        attributes: further labels of each item, as text.
        is_test: (N,) bool, items that no model is ever trained on.
        is_corrupt: (N,) bool, items with wrong content, which are trained on only to corrupt a model; None for none.
        fingerprint: a hash of the content; part of the key under which trained models are cached.
        info: what a model must know to fit the data, e.g. ``{"shape": (1, 8, 8), "levels": 17}``; ``frame`` is the
            width in pixels of a border that was added around images, if any.
        prompts_only: whether items are conditions (prompts) without content, so that no model can be trained on them.
        may_be_nan: keys of a batch in which nan stands for items that are given otherwise.
    """

    labels: Sequence[str]
    attributes: Sequence[frozenset[str]]
    is_test: Tensor
    is_corrupt: Tensor | None = None
    fingerprint: str
    info: dict[str, Any]
    prompts_only: bool = False
    may_be_nan: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def batch(self, ids: Tensor) -> Batch:
        """Return the items ``ids`` (B,) on the CPU; always holds ``id``, (B,) int64."""

    def content(self, ids: Tensor) -> str:
        """Return a hash of what a model trained on these items sees."""
        return f"{self.fingerprint} {hashlib.sha256(ids.numpy().tobytes()).hexdigest()}"

    def remarks(self, ids: Tensor) -> list[str]:
        """Return warnings about these items, to be shown before a run. Raises RecipeError if they cannot be used."""
        return []

    def check_forget(self, ids: Tensor) -> None:
        """Check that these items can be forgotten. Raises RecipeError otherwise."""
        return

    def form(self, name: str, ids: Tensor) -> Batch:
        """Return the items in another form (a paraphrase, a refusal). Data that has such forms overrides this."""
        raise RecipeError(f"{type(self).__name__} has no form {name!r} of its items.")

    def having_form(self, name: str) -> Tensor:
        """Return (N,) bool: the items that have a form."""
        return torch.zeros(len(self), dtype=torch.bool)

    def kinds(self, item: int) -> frozenset[str]:
        """Return what may set an item apart from others: its label and its attributes; see ``Split.few``."""
        return frozenset({self.labels[item], *self.attributes[item]})

    @property
    def is_trained(self) -> Tensor:
        """Items that a target may be trained on, (N,) bool."""
        return ~self.is_test if self.is_corrupt is None else ~(self.is_test | self.is_corrupt)

    @property
    def names(self) -> list[str]:
        """All labels and attributes that occur, sorted."""
        return sorted(set(self.labels).union(*self.attributes) - {""})

    @cached_property
    def label_numbers(self) -> Tensor:
        """Each item's label as an index into ``names``, -1 for none, (N,) int64."""
        number = {name: index for index, name in enumerate(self.names)}
        return torch.tensor([number.get(label, -1) for label in self.labels], dtype=torch.int64)

    @cached_property
    def clusters(self) -> Tensor:
        """Number of each item's source, (N,) int64; items of one source (an author, a person) vary together.

        Each item is its own source here; data whose items share some override it.
        """
        return torch.arange(len(self))

    def having(self, names: Sequence[str]) -> Tensor:
        """Return (N,) bool: the items whose label or attributes include all of ``names``."""
        wanted, rows = set(names), zip(self.labels, self.attributes, strict=True)
        return torch.tensor([wanted <= {label, *more} for label, more in rows], dtype=torch.bool)


@dataclass
class Selection:
    """A choice of items: every given condition must hold.

    Args:
        label: items with any of these labels or attributes.
        all_of: items with every one of these labels or attributes.
        without: items with none of these labels or attributes.
        ids: items by id.
        likelihood_quantile: items whose likelihood quantile under the target lies in [low, high]; 1 is the most
            likely. The model must have a likelihood.
        count: number of items to keep of those that remain, drawn by the seed.
    """

    label: list[str] | None = None
    all_of: list[str] | None = None
    without: list[str] | None = None
    ids: list[int] | None = None
    likelihood_quantile: tuple[float, float] | None = None
    count: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.likelihood_quantile is not None:
            low, high = self.likelihood_quantile
            if not 0 <= low <= high <= 1:
                raise ValueError(f"likelihood_quantile is {[low, high]}; it must be [low, high], 0 <= low <= high <= 1")

    @property
    def is_empty(self) -> bool:
        """Whether no condition is given."""
        return self == Selection()

    def or_label(self, name: str) -> Selection:
        """Return this selection; if it names no items itself, among those called ``name``."""
        named = any(given is not None for given in (self.label, self.all_of, self.without, self.ids))
        return self if named else replace(self, label=[name])


@dataclass(frozen=True)
class Split:
    """A named subset of a dataset, in a fixed order.

    Args:
        name: forget, retain, ...
        dataset: all items.
        ids: of the subset's items, (n,).
        whole: ids of the split that these items stand for, where they are few of it; None where they are all.
    """

    name: str
    dataset: Dataset
    ids: Tensor
    whole: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, ids: Tensor) -> Batch:
        """Return the items with these ids. Raises RecipeError where the data source returns something else."""
        who = f"{type(self.dataset).__module__}.{type(self.dataset).__qualname__}.batch"
        found = Items(promised(self.dataset.batch(ids), dict, who))
        if not isinstance(given := found.get("id"), Tensor) or not torch.equal(given, ids):
            raise RecipeError(f"{who} returned items without their ids; it must return the ids asked for as 'id'.")
        if wrong := [key for key, value in found.items() if not isinstance(value, Tensor)]:
            raise RecipeError(f"{who}: {wrong[0]!r} is a {type(found[wrong[0]]).__name__}; it must be a tensor.")
        for key, value in found.items():
            if value.is_floating_point() and key not in self.dataset.may_be_nan:
                _refuse_items(~value.isfinite(), found, f"{who}: {key!r}", "values that are not finite")
        levels = self.dataset.info.get("levels")
        if levels is not None and "image" in found:
            outside = (found["image"] < 0) | (found["image"] > levels - 1)
            what = f"values outside of the grey levels 0 to {levels - 1} that its info states"
            _refuse_items(outside, found, f"{who}: 'image'", what)
        return found

    def few(self, n: int) -> Split:
        """Return n items that differ as much as they can in their kinds, in the split's order."""
        alike: dict[frozenset[str], list[int]] = {}
        for place, item in enumerate(self.ids.tolist()):
            alike.setdefault(self.dataset.kinds(item), []).append(place)
        places: list[int] = []
        known: frozenset[str] = frozenset()
        while alike and len(places) < n:
            newest = max(alike, key=lambda kinds: len(kinds - known))
            places.append(alike[newest].pop(0))
            known |= newest
            if not alike[newest]:
                del alike[newest]
        return replace(self, ids=self.ids[sorted(places)], whole=self.ids)

    def halves(self) -> tuple[Split, Split]:
        """Return two halves, one to stop and tune on, one for the figures; they are the same for every seed."""
        order = Randomness(0, "halves").permutation(len(self.ids))
        halves = (order[: len(order) // 2], order[len(order) // 2 :])
        tuning, figures = (replace(self, ids=self.ids[half.sort().values]) for half in halves)
        return tuning, figures


def _refuse_items(wrong: Tensor, items: Batch, where: str, what: str) -> None:
    """Raise a RecipeError that names the items with wrong values; a model would learn them, or its loss be nan."""
    if wrong.any():
        ids = items["id"][wrong.flatten(1).any(1) if wrong.dim() > 1 else wrong].tolist()
        shown = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise RecipeError(f"{where} holds {what}, in the items {shown}. Mend them, or leave them out of the data.")


def numbered(sources: Sequence[str]) -> Tensor:
    """Return the number of each item's source (N,) int64 by its name; one without a name is a source of its own."""
    numbers: dict[str | int, int] = {}
    return torch.tensor([numbers.setdefault(name or place, len(numbers)) for place, name in enumerate(sources)])


def check_content(split: Split, what: str, instead: str) -> None:
    """Raise RecipeError for items that are prompts without images; ``instead`` says what to type."""
    if split.dataset.prompts_only:
        raise RecipeError(f"{what} needs images, and the {split.name} items are prompts without images. {instead}")


@dataclass
class Source(ABC):
    """Where the data comes from, and what to forget. A data source is one subclass in one file.

    Args:
        forget: the training items whose influence is removed.
        retain: the training items to keep; by default all that are not forgotten.
        holdout: items of the forget distribution that were never trained on. By default these are the test items
            that the label conditions of ``forget`` select, or all test items if there are no such conditions. If a
            source marks test items with the attribute ``holdout``, only these are chosen from. Test items with the
            attribute ``evaluation`` (questions of another distribution) are included only if named.
        corruption: which images are made wrong, for the part ``corrupt`` of the recipe; wrong ones are forgotten.
    """

    forget: Selection = field(default_factory=Selection)
    retain: Selection = field(default_factory=Selection)
    holdout: Selection = field(default_factory=Selection)
    corruption: Corruption | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError for values outside of the ranges that their types state; subclasses extend it."""
        if self.corruption is not None:
            self.forget = self.forget.or_label(CORRUPTED)
        check_ranges(self)

    @property
    def asks_likelihood(self) -> bool:
        """Whether a selection needs the likelihood under the target."""
        chosen = (self.forget, self.retain, self.holdout)
        return any(selection.likelihood_quantile is not None for selection in chosen)

    @abstractmethod
    def load(self) -> Dataset:
        """Read the items. Raises RecipeError if something is missing or wrong."""


def check_names(dataset: Dataset, selection: Selection, where: str) -> None:
    """Raise RecipeError for labels and ids that the dataset does not have."""
    for key in ("label", "all_of", "without"):
        for name in getattr(selection, key) or ():
            if name not in dataset.names:
                raise RecipeError(f"{where}.{key}: the data has no {name!r}. {did_you_mean(name, dataset.names)}")
    for item in selection.ids or ():
        if not 0 <= item < len(dataset):
            raise RecipeError(f"{where}.ids: the data has no item {item}; ids run from 0 to {len(dataset) - 1}.")
