"""Handwritten digits of 8 x 8 pixels, packaged with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits

from unlearn.data.base import Dataset, Source
from unlearn.data.images import ImagesInMemory, digit_attributes


@dataclass
class Digits(Source):
    """1,797 real digits of 13 writers, 17 grey levels, every fifth of a class a test item.

    Labels are ``"0"`` ... ``"9"``; attributes ``even``, ``odd``, ``bold`` and ``light`` (ink at or above, or below,
    the median of the same digit).

    Reference:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """

    def load(self) -> Dataset:
        """Read the images from scikit-learn; no network."""
        packaged = load_digits()
        images = torch.from_numpy(packaged.images).to(torch.uint8)[:, None]
        digits = [int(digit) for digit in packaged.target]
        return ImagesInMemory(images, [str(d) for d in digits], digit_attributes(images, digits), levels=17)
