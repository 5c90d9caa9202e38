"""Images in memory, and what all image data share: the test items, labels as numbers."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import Range, at_least, at_most
from unlearn.data.base import Batch, Dataset
from unlearn.data.concept import Concept

Bits = Annotated[int, Range(at_least, 1), Range(at_most, 8)]
TEST_EVERY = 5
"""Every fifth item of a label is a test item (20 %)."""


def systematic_test_share(labels: Sequence[str]) -> Tensor:
    """Return (N,) bool: every fifth item of each label in the order of the data, whatever the run's seed.

    A label with fewer than five items gives none.
    """
    place: dict[str, count[int]] = defaultdict(lambda: count(1))  # of an item among those of its label
    return torch.tensor([next(place[label]) % TEST_EVERY == 0 for label in labels], dtype=torch.bool)


class ImagesInMemory(Dataset):
    """Images that fit in memory.

    Args:
        images: (N, C, H, W) uint8, grey levels 0 ... levels - 1.
        labels: one per item.
        attributes: further labels of each item.
        levels: number of grey levels, 2 ... 256.
        concepts: for diffusion models: what to forget, and what takes its place.
        frame: width in pixels of a border added on every side; evaluators look inside it.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[str],
        attributes: Sequence[frozenset[str]],
        levels: int,
        concepts: Sequence[Concept] = (),
        frame: int = 0,
    ) -> None:
        self.images = images
        self.concepts = concepts
        self.labels = labels
        self.attributes = attributes
        self.is_test = systematic_test_share(labels)
        self.info = {"shape": tuple(images.shape[1:]), "levels": levels, **({"frame": frame} if frame else {})}
        content = hashlib.sha256(repr((self.info, list(labels), [sorted(a) for a in attributes])).encode())
        content.update(images.contiguous().numpy().tobytes())
        self.fingerprint = content.hexdigest()

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return ``id``, ``image`` (B, C, H, W) uint8 and ``label`` (B,) of the items ``ids``."""
        return {"id": ids, "image": self.images[ids], "label": self.label_numbers[ids]}


def digit_attributes(images: Tensor, digits: Tensor) -> list[frozenset[str]]:
    """Return attributes of handwritten digits, (N, C, H, W) and (N,).

    ``even`` or ``odd``; ``bold`` (at least the median ink of the same digit) or ``light``.
    """
    ink = images.flatten(1).sum(dim=1, dtype=torch.int64)
    median = torch.stack([ink[digits == digit].median() for digit in range(10)])
    odd, bold = digits % 2 == 1, ink >= median[digits]
    return [frozenset({"odd" if o else "even", "bold" if b else "light"}) for o, b in zip(odd, bold, strict=True)]
