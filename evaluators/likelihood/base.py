"""Likelihoods of items, measured once per model and shared by the evaluators of this folder."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unlearn.core.distributed import map_ids
from unlearn.core.randomness import Randomness
from unlearn.core.validation import PositiveInt
from unlearn.evaluators.base import Evaluation, Evaluator
from unlearn.evaluators.sampling import some_of
from unlearn.models.capabilities import HasLikelihood, Model
from unlearn.models.likelihood import bits_per_dim_of

SPLITS = ("forget", "retain", "holdout", "test")
"""Splits whose likelihood is measured, in the order of the tables."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodEvaluator(Evaluator[HasLikelihood]):
    """Evaluator of the bits per dimension of items.

    Args:
        draws: draws of the dequantisation noise that are averaged, >= 1.
        items: at most this many items per split, drawn by the seed; null takes all.
        batch_size: items per forward pass; does not change the result.
    """

    draws: PositiveInt = 3
    items: PositiveInt | None = 500
    batch_size: PositiveInt = 256

    def chosen(self, evaluation: Evaluation[Model]) -> dict[str, Tensor]:
        """Return split -> ids of the items that are measured, (n,), for the splits that have any."""
        found = [split for split in SPLITS if split in evaluation.splits and len(evaluation.splits[split])]
        return {split: some_of(evaluation, split, self.items) for split in found}

    def bits(self, evaluation: Evaluation[HasLikelihood], subject: str, split: str, ids: Tensor) -> Tensor:
        """Return the bits/dim of items of a split, (n,) float64 on the CPU, each the mean over draws of the noise.

        The noise is the same for every subject and every evaluator. Items measured before are read from the cache.
        """
        unknown = torch.full((len(evaluation.splits[split].dataset),), torch.nan, dtype=torch.float64)
        bits: Tensor = evaluation.cache.setdefault(("bits", subject, self.draws), unknown)  # splits share one dataset
        missing = ids[bits[ids].isnan()]
        if len(missing):
            found = bits_per_dim_of(
                evaluation.models[subject],  # only now: asking moves it to the device
                partial(evaluation.batch, split),
                missing,
                Randomness(evaluation.seed, "likelihood"),
                self.draws,
                partial(map_ids, batch_size=self.batch_size),
            )
            bits[missing] = found.double().cpu()
        return bits[ids]
