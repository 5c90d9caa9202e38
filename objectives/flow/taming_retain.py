"""The retain term of likelihood taming: the spread of likelihoods stays as it was."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.validation import UnitInterval
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood
from unlearn.models.likelihood import bits_per_dim
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class TamingRetain(Objective[HasLikelihood]):
    """Keep the Gaussian fit of retain images' bits/dim near the target's, and the bits/dim low.

    gamma * KL + (1 - gamma) * mean bits/dim of the model, where the KL is between the Gaussians that the batch's
    mean and standard deviation (n - 1) fit under the target (B) and under the model (T). Both see the same
    dequantisation noise.

    Args:
        gamma: share of the KL, in [0, 1].
        direction: forward is KL(B || T), reverse KL(T || B), both their sum.
        variant: ``released`` is the authors' code, whose logarithms (math.log) carry no gradient. In both directions
            together they cancel; in one alone the gradient is wrong, forward even in sign. The code also averages
            log-determinants over the batch, which changes nothing with its additive couplings and is not done here.

    Reference:
        Malnick, Avidan and Fried, Taming Normalizing Flows, WACV 2024, arXiv:2211.16488; its released
        taming_an_identity.py.
    """

    gamma: UnitInterval = 0.6
    direction: Literal["both", "forward", "reverse"] = "both"
    variant: Literal["paper", "released"] = "paper"

    over_batch: ClassVar[bool] = True

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return the bits/dim of retain images under the model and, without gradient, the target, (B, 2)."""
        bits = bits_per_dim(model, batch, context.randomness)
        with torch.no_grad():
            reference = bits_per_dim(context.reference(), batch, context.randomness)
        return Values(torch.stack((bits, reference), dim=1), {"bits_per_dim": bits.detach()})

    def reduce(self, values: Tensor, weights: Tensor) -> Tensor:
        """Turn bits/dim (N, 2) of the global batch into the loss, a scalar."""
        if len(values) < 2:
            raise RecipeError(
                f"taming_retain: the retain batch has {len(values)} item(s), but a spread needs at least 2. "
                "Type optim.batch=8 or more."
            )
        mean, std = _moments(values, weights)
        log = _detached_log if self.variant == "released" else torch.log
        # column 0 is the model (T), column 1 the target (B)
        forward = log(std[0] / std[1]) + _fit(std[1], mean[1], std[0], mean[0])
        reverse = log(std[1] / std[0]) + _fit(std[0], mean[0], std[1], mean[1])
        kl = {"forward": forward, "reverse": reverse, "both": forward + reverse}[self.direction]
        return self.gamma * kl + (1 - self.gamma) * mean[0]


def _moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (n - 1) of each column of values (N, K), each (K,)."""
    total = weights.sum()
    mean = (weights[:, None] * values).sum(0) / total
    square = (weights[:, None] * (values - mean).square()).sum(0)
    # weights w: total (1 - 1 / n) is n - 1 where all are 1
    return mean, torch.sqrt(square / (total * (1 - 1 / len(values))))


def _fit(std: Tensor, mean: Tensor, to_std: Tensor, to_mean: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(to_mean, to_std^2)) without its logarithm."""
    return (std.square() + (mean - to_mean).square()) / (2 * to_std.square()) - 0.5


def _detached_log(value: Tensor) -> float:
    return math.log(value.item())
