"""Bits per dimension: the one definition that objectives and evaluators share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.data.base import Batch
from unlearn.distributed import map_ids
from unlearn.errors import Diverged, RecipeError
from unlearn.models.base import HasLikelihood
from unlearn.randomness import Randomness


def bits_per_dim(model: HasLikelihood, batch: Batch, randomness: Randomness, draws: int = 1) -> Tensor:
    """Return -log2 p(x) / dimensions an item, (B,), with gradient.

    Args:
        model: gives log p(x) in nats and the number of dimensions.
        batch: B items.
        randomness: stream of the dequantisation noise; the same stream and draws give two models the same noise.
        draws: how many draws of the noise are averaged, >= 1.
    """
    noise = randomness.child("draw0")  # the stream under which the shipped models were trained
    nats = torch.stack([model.log_prob(_with_draw(batch, index, draws), noise) for index in range(draws)])
    return -nats.mean(0) / (math.log(2) * model.dimensions(batch))


def bits_per_dim_of(
    model: HasLikelihood,
    fetch: Callable[[Tensor], Batch],
    ids: Tensor,
    randomness: Randomness,
    draws: int = 1,
    map_ids: Callable[..., Tensor] = map_ids,
) -> Tensor:
    """Return what ``bits_per_dim`` gives for many items, (N,), without gradient and shared among ranks.

    Args:
        model: as for ``bits_per_dim``.
        fetch: returns the items with given ids, e.g. ``partial(context.batch, "retain")``.
        ids: (N,) int64, N >= 1.
        randomness: as for ``bits_per_dim``.
        draws: how many draws of the noise are averaged, >= 1.
        map_ids: shares the ids among ranks (unlearn.distributed.map_ids).
    """

    def single_draws(rows: Tensor) -> Tensor:
        """Row r is draw r % draws of item r // draws, so that few items with many draws fill one forward pass."""
        batch = fetch(ids[rows // draws])
        return bits_per_dim(model, _with_draw(batch, (rows % draws).to(batch["id"].device), draws), randomness)

    return map_ids(single_draws, torch.arange(len(ids) * draws)).view(len(ids), draws).mean(1)


def _with_draw(batch: Batch, draw: int | Tensor, draws: int) -> Batch:
    """Return the batch with ids, which noise is drawn by, that tell the draws apart."""
    return {**batch, "id": batch["id"] * draws + draw}


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (n - 1) of bits/dim over a set of items."""

    mean: float
    std: float

    @classmethod
    def of(cls, bits: Tensor) -> Moments:
        """Return the moments of bits (N,).

        Raises:
            RecipeError: there are fewer than two items, or all are equal.
            Diverged: a value is not finite.
        """
        if not bits.isfinite().all():
            raise Diverged("The bits/dim of some retain image are no longer finite. Type a smaller optim.lr.")
        if len(bits) < 2 or not (std := bits.double().std().item()) > 0:
            raise RecipeError(
                f"the spread of bits/dim over {len(bits)} item(s) is zero; "
                "give the set at least two items that differ (data.retain)."
            )
        return cls(bits.double().mean().item(), std)

    def z(self, bits: Tensor) -> Tensor:
        """Return how many standard deviations above the mean bits (N,) lie; higher is less likely."""
        return (bits - self.mean) / self.std
