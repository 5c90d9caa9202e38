"""Handwritten digits in colours with captions: real images for models that take prompts."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.data.base import Batch, Dataset, Source
from unlearn.data.concept import Concept
from unlearn.data.digits import Digits

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "white": (1, 1, 1),
}
"""Which channels carry the ink."""

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The digits as captions name them."""


@dataclass
class ColouredDigits(Source):
    """The 1,797 digits of scikit-learn, each in every colour: captions like "a red three".

    Labels are ``zero`` ... ``nine``; the colour is an attribute. An item's id is 5 x that of its digit, plus the
    number of its colour. All colours of a digit are training items, or all are test items.

    Args:
        concepts: what to forget, and what takes its place.
    """

    concepts: list[Concept] = field(default_factory=list)

    @override
    def load(self) -> Dataset:
        return _Coloured(Digits().load(), self.concepts)


class _Coloured(Dataset):
    def __init__(self, digits: Dataset, concepts: list[Concept]) -> None:
        self.digits = digits
        self.concepts = concepts
        names = list(COLOURS)
        self.labels = [DIGIT_WORDS[int(label)] for label in digits.labels for _ in names]
        self.attributes = [frozenset({name}) for _ in digits.labels for name in names]
        self.captions = [f"a {name} {DIGIT_WORDS[int(label)]}" for label in digits.labels for name in names]
        self.is_test = digits.is_test.repeat_interleave(len(names))
        self.info = {"shape": (3, *digits.info["shape"][1:]), "levels": digits.info["levels"]}
        self.fingerprint = hashlib.sha256(repr((digits.fingerprint, COLOURS)).encode()).hexdigest()
        self._ink = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[:, :, None, None]

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return ``id``, ``image`` (B, 3, 8, 8) uint8 and ``label`` (B,)."""
        digits, colours = ids // len(COLOURS), ids % len(COLOURS)
        image = self.digits.batch(digits)["image"] * self._ink[colours]  # (B, 1, 8, 8) x (B, 3, 1, 1)
        return {"id": ids, "image": image, "label": self.label_numbers[ids]}
