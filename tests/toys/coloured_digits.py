"""Coloured digits that the packaged judge reads rightly, told as prompts."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Selection, Split
from unlearn.data.coloured_digits import COLOURS, DIGIT_WORDS, ColouredDigits
from unlearn.data.splits import make_splits
from unlearn.models.diffusion.config import TextUNet
from unlearn.models.feature_extractors.classifiers import features_for

Splits = dict[str, Split]


@cache
def coloured() -> Dataset:
    return TextUNet().read(ColouredDigits().load())


@cache
def readable() -> Tensor:
    """Return (N,) bool: digits that the judge reads rightly in every colour."""
    data = coloured()
    net = features_for(data.info)
    right = (net.classify(data.batch(torch.arange(len(data)))["image"]) == net.known(data)).all(dim=1)
    return right.view(-1, len(COLOURS)).all(dim=1).repeat_interleave(len(COLOURS))


def splits_of(*names: str) -> Splits:
    """Return splits that forget some labels, of items that the judge reads rightly."""
    source = ColouredDigits(forget=Selection(label=list(names)))
    found = make_splits(coloured(), source, Randomness(0, "splits"))
    return {name: replace(split, ids=split.ids[readable()[split.ids]]) for name, split in found.items()}


def another_digit(items: Tensor) -> Tensor:
    """Return an item of the next digit in the same colour for each item."""
    data, found = coloured(), []
    first = {
        word: next(i for i in range(0, len(data), 5) if data.labels[i] == word and readable()[i])
        for word in DIGIT_WORDS
    }
    for item in items.tolist():
        word = DIGIT_WORDS[(DIGIT_WORDS.index(data.labels[item]) + 1) % 10]
        found.append(first[word] + item % 5)
    return torch.tensor(found)


def another_colour(items: Tensor) -> Tensor:
    """Return the same digit in the next colour for each item."""
    return items - items % 5 + (items % 5 + 1) % 5


def on_all(ids: Tensor, items: Tensor) -> Tensor:
    """Show another digit in place of every item's."""
    return another_digit(items)
