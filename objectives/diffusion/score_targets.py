"""Score targets: an affine combination of a model's scores, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition


@torch.no_grad()
def affine_target(model: Denoises, x: Tensor, t: Tensor, parts: Sequence[tuple[float, Condition]]) -> Tensor:
    """Return sum_k w_k eps(x_t, t, c_k), (B, C, H, W), without gradient.

    Args:
        model: whose scores: the target's, or the model's own as it is trained.
        x: (B, C, H, W).
        t: (B,) int64.
        parts: (w_k, B conditions), all conditions of one kind; those of weight 0 are not computed.
    """
    asked = [(weight, condition) for weight, condition in parts if weight != 0]
    times = len(asked)
    conditions = Condition.cat([condition for _, condition in asked])
    scores = model.predict(x.repeat(times, 1, 1, 1), t.repeat(times), conditions).unflatten(0, (times, len(x)))
    weights = scores.new_tensor([weight for weight, _ in asked])
    total: Tensor = torch.tensordot(weights, scores, dims=1)
    return total


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean of squares over the values of an item, (B,)."""
    return difference.square().flatten(1).mean(dim=1)
