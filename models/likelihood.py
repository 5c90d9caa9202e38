"""Bits per dimension: the one definition that objectives and evaluators share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.core.distributed import map_ids
from unlearn.core.errors import Diverged, RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood


def bits_per_dim(model: HasLikelihood, batch: Batch, randomness: Randomness, draws: int = 1) -> Tensor:
    """Return -log2 p(x) / dimensions per item, (B,), with gradient.

    Args:
        model: gives log p(x) in nats and the number of dimensions.
        batch: B items.
        randomness: stream of the dequantisation noise; the same stream gives two models the same noise.
        draws: how many draws of the noise are averaged, >= 1.
    """
    # log-likelihoods are averaged, not likelihoods: every number of draws estimates the same lower bound
    nats = torch.stack([model.log_prob(batch, randomness.child(f"draw{index}")) for index in range(draws)])
    return -nats.mean(0) / (math.log(2) * model.dimensions(batch))


def bits_per_dim_of(
    model: HasLikelihood,
    fetch: Callable[[Tensor], Batch],
    ids: Tensor,
    randomness: Randomness,
    draws: int = 1,
    map_ids: Callable[..., Tensor] = map_ids,
) -> Tensor:
    """Return the bits/dim of many items, (N,), without gradient and shared among ranks.

    Args:
        model: as for ``bits_per_dim``.
        fetch: returns the items with given ids, e.g. ``partial(context.batch, "retain")``.
        ids: (N,) int64, N >= 1.
        randomness: stream of the dequantisation noise.
        draws: how many draws of the noise are averaged, >= 1.
        map_ids: shares the ids among ranks (unlearn.core.distributed.map_ids).
    """
    return map_ids(lambda part: bits_per_dim(model, fetch(part), randomness, draws), ids)


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
