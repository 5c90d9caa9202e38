"""What a model recalls of items."""

from typing import NamedTuple

from torch import Tensor


class Recalled(NamedTuple):
    """What a model draws of items from a part of what they hold, and how badly it accounts for them.

    Attributes:
        images: (L, B, C, H, W) uint8, one reconstruction per level.
        loss: (B,), the family's likelihood score; lower for items that were trained on.
        levels: how much of an item is withheld, in words, one per reconstruction.
    """

    images: Tensor
    loss: Tensor
    levels: tuple[str, ...]
