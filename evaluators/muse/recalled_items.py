"""What models recall of items, computed once and shared by the criteria."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.randomness import Randomness
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split, check_content
from unlearn.evaluators.base import Evaluation, Evaluator
from unlearn.evaluators.sampling import some_of
from unlearn.models.capabilities import Recalls
from unlearn.models.recalled import Recalled

SPLITS = ("forget", "retain", "holdout")
"""Splits whose items are recalled, in the order of the tables."""


@dataclass(frozen=True, kw_only=True)
class RecallEvaluator(Evaluator[Recalls]):
    """Evaluator of what is recalled of images.

    Args:
        items: at most this many items per split, drawn by the seed; null takes all.
        batch_size: items at once; does not change the result.
    """

    items: PositiveInt | None = 100
    batch_size: PositiveInt = 100

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        check_content(splits["forget"], "evaluate: what is recalled of an item", "Give images, or evaluate.NAME=null.")

    def chosen(self, evaluation: Evaluation[Recalls]) -> dict[str, Tensor]:
        """Return split -> ids of the items that are recalled, (n,), for the splits that have any."""
        found = [split for split in SPLITS if split in evaluation.splits and len(evaluation.splits[split])]
        return {split: some_of(evaluation, split, self.items) for split in found}

    def recalled(self, evaluation: Evaluation[Recalls], subject: str, split: str, ids: Tensor) -> Recalled:
        """Return what a subject recalls of items of a split: images (L, n, C, H, W) and losses (n,), on the CPU.

        The noise is the same for every subject. Items recalled before are read from the cache.
        """
        key = ("recalled", subject, *ids.tolist())
        if key not in evaluation.cache:
            model, stream = evaluation.models[subject], Randomness(evaluation.seed, "recall")
            levels: set[tuple[str, ...]] = set()

            def recall(part: Tensor) -> Tensor:
                images, loss, names = model.recall(evaluation.batch(split, part), stream)
                levels.add(names)
                # one row per item, which ranks can share: its images, and its loss
                return torch.cat([images.transpose(0, 1).flatten(1).float(), loss.float()[:, None]], dim=1)

            rows = map_ids(recall, ids.to(evaluation.device), self.batch_size).cpu()
            shape = evaluation.splits[split].batch(ids[:1])["image"].shape[1:]
            images = rows[:, :-1].to(torch.uint8).unflatten(1, (-1, *shape)).transpose(0, 1)
            evaluation.cache[key] = Recalled(images, rows[:, -1].double(), levels.pop())
        found: Recalled = evaluation.cache[key]
        return found
