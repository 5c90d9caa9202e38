"""Handwritten digits of 8 x 8 pixels, packaged with scikit-learn."""

from dataclasses import dataclass, field

import torch
from sklearn.datasets import load_digits
from typing_extensions import override

from unlearn.data.base import Dataset, Source
from unlearn.data.concept import Concept
from unlearn.data.in_memory import ImagesInMemory, digit_attributes


@dataclass
class Digits(Source):
    """1,797 digits of 13 writers in 17 grey levels; every fifth image of a digit is a test item.

    Labels are ``"0"`` ... ``"9"``; attributes ``even``, ``odd``, ``bold`` and ``light`` (ink at or above, or below,
    the median of the same digit).

    Args:
        concepts: for diffusion models: what to forget, and what takes its place.

    Reference:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """

    concepts: list[Concept] = field(default_factory=list)

    @override
    def load(self) -> Dataset:
        """Read the images from scikit-learn; needs no network."""
        packaged = load_digits()
        images = torch.from_numpy(packaged.images).to(torch.uint8)[:, None]
        digits = torch.from_numpy(packaged.target).to(torch.int64)
        attributes = digit_attributes(images, digits)
        return ImagesInMemory(images, list(map(str, digits.tolist())), attributes, levels=17, concepts=self.concepts)
