"""Images with wrong copies: what a model learns on top of the right ones, and is to unlearn again."""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset
from unlearn.data.corruption import CORRUPTED, UNRELATED, Corruption

MARK = 0.25
"""Side of the mark as a share of the image's."""


class CorruptedImages(Dataset):
    """The items of a dataset and, behind them, wrong copies of some.

    Args:
        base: images.
        corruption: what is made wrong.
    """

    def __init__(self, base: Dataset, corruption: Corruption) -> None:
        for name in (*corruption.label, *filter(None, [corruption.instead])):
            if name not in base.names:
                raise RecipeError(f"data.corruption: the data has no {name!r}. {did_you_mean(name, base.names)}")
        if "shape" not in base.info or base.prompts_only:
            raise RecipeError("data.corruption makes images wrong, and the data has none. Type data.corruption=null.")
        self.base, self.corruption = base, corruption
        chosen = torch.stack([base.having([name]) for name in corruption.label]).any(dim=0)
        self.contradicted = torch.nonzero(chosen & base.is_trained).flatten()
        others = torch.nonzero(~chosen & base.is_trained).flatten()
        if len(self.contradicted) == 0 or len(others) == 0:
            raise RecipeError("data.corruption.label must name some of the training items, and not all of them.")
        order = Randomness(0, "unrelated").permutation(len(others))
        count = corruption.unrelated * len(self.contradicted)
        # of a copy: the item that it is a copy of, and the item whose image it shows
        self.original = torch.cat([self.contradicted, others[order.repeat(-(-count // len(others)))[:count]]])
        self.shown = self.original.clone()
        if corruption.transform == "exchange":
            self.shown[: len(self.contradicted)] = self._instead(corruption.instead)
        copies = self.original.tolist()
        self.labels = [*base.labels, *(base.labels[item] for item in copies)]
        kinds = [{CORRUPTED}] * len(self.contradicted) + [{CORRUPTED, UNRELATED}] * count
        added = (base.attributes[item] | kind for item, kind in zip(copies, kinds, strict=True))
        self.attributes = [*base.attributes, *added]
        captions: Sequence[str] = getattr(base, "captions", base.labels)
        self.captions = [*captions, *(captions[item] for item in copies)]
        self.concepts = getattr(base, "concepts", ())
        self.is_test = torch.cat([base.is_test, torch.zeros(len(copies), dtype=torch.bool)])
        self.is_corrupt: Tensor = torch.arange(len(self.labels)) >= len(base)
        self.fingerprint = base.fingerprint  # so that models of the right items are found
        self.info = base.info

    @override
    def content(self, ids: Tensor) -> str:
        wrong = ids[ids >= len(self.base)]
        if len(wrong) == 0:
            return self.base.content(ids)
        made = hashlib.sha256(repr((self.corruption, self.shown.tolist(), self.original.tolist())).encode())
        return f"{super().content(ids)} {made.hexdigest()}"

    @override
    @cached_property
    def clusters(self) -> Tensor:
        return torch.cat([self.base.clusters, self.base.clusters[self.original]])

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return the items of the base, of copies with the wrong image."""
        place = ids - len(self.base)
        copies = place >= 0
        found = self.base.batch(torch.where(copies, self.shown[place.clamp(min=0)], ids))
        found |= {"id": ids, "label": self.label_numbers[ids]}
        if self.corruption.transform == "stamp":
            wrong = copies & (place < len(self.contradicted))
            found["image"] = torch.where(wrong[:, None, None, None], self.stamped(found["image"]), found["image"])
        return found

    @override
    def having_form(self, name: str) -> Tensor:
        if name != CORRUPTED:
            return super().having_form(name)
        has = torch.zeros(len(self), dtype=torch.bool)
        has[self.contradicted] = True
        return has

    @override
    def form(self, name: str, ids: Tensor) -> Batch:
        """Return the right items ``ids`` (B,) in their form ``corrupted``."""
        if name != CORRUPTED:
            return super().form(name, ids)
        place = torch.searchsorted(self.contradicted, ids)
        return {**self.batch(place + len(self.base)), "id": ids}

    def stamped(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) uint8 with the mark in the upper left corner: as bright as can be."""
        marked = images.clone()
        side = self.side
        marked[..., :side, :side] = self.info.get("levels", 256) - 1
        return marked

    def has_mark(self, images: Tensor) -> Tensor:
        """Return which images (B, C, H, W) uint8 have the mark, (B,) bool: three quarters as bright on average."""
        bright: Tensor = images[..., : self.side, : self.side].flatten(1).double().mean(dim=1)
        return bright > 0.75 * (int(self.info.get("levels", 256)) - 1)

    @property
    def side(self) -> int:
        """Side of the mark in pixels."""
        return max(1, round(MARK * float(min(self.info["shape"][1:]))))

    def _instead(self, label: str) -> Tensor:
        """Return an item of a label for each contradicted one, with the same attributes where there is one, (n,)."""
        candidates = torch.nonzero(self.base.having([label]) & self.base.is_trained).flatten().tolist()
        alike: dict[frozenset[str], list[int]] = {}
        for item in candidates:
            alike.setdefault(self.base.attributes[item], []).append(item)
        found = []
        for place, item in enumerate(self.contradicted.tolist()):
            among = alike.get(self.base.attributes[item], candidates)
            found.append(among[place % len(among)])
        return torch.tensor(found)
