"""The moving threshold of likelihood taming: where retain images lie now, and how far an image is from it."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unlearn.models.capabilities import HasLikelihood
from unlearn.models.likelihood import Moments, bits_per_dim_of
from unlearn.objectives.base import Context

Unit = Literal["sigma", "bits_per_dim"]
"""Unit of the distance in the loss."""


def measure(model: HasLikelihood, context: Context[HasLikelihood], images: int) -> Moments:
    """Measure bits/dim of up to ``images`` random retain images under the current model, and keep it in the state."""
    ids = context.splits["retain"].ids
    chosen = ids[context.randomness.child("reference").permutation(len(ids))[:images]]
    noise = context.randomness.child("reference_noise")
    fetch = partial(context.batch, "retain")
    moments = Moments.of(bits_per_dim_of(model, fetch, chosen, noise, map_ids=context.map_ids))
    context.state.update(mu=moments.mean, sigma=moments.std)
    return moments


def refresh(model: HasLikelihood, context: Context[HasLikelihood], every: int, images: int) -> Moments:
    """Measure anew at every ``every``-th step; return the moments that hold at this one."""
    if context.step % every == 0 or "mu" not in context.state:
        return measure(model, context, images)
    return current(context)


def current(context: Context[HasLikelihood]) -> Moments:
    """Return the moments that were measured last."""
    return Moments(context.state["mu"], context.state["sigma"])


def forget_z(
    model: HasLikelihood, context: Context[HasLikelihood], moments: Moments, draws: int, purpose: str
) -> Tensor:
    """Return z of every forget image in the split's order, (N,), bits/dim averaged over ``draws`` noise draws.

    Two purposes draw different noise.
    """
    noise = context.randomness.child(purpose)
    fetch = partial(context.batch, "forget")
    bits = bits_per_dim_of(model, fetch, context.splits["forget"].ids, noise, draws, context.map_ids)
    return moments.z(bits).cpu()


def distance_loss(distance: Tensor, moments: Moments, unit: Unit) -> Tensor:
    """Return the two-sided loss of distances (B,) in standard deviations.

    ``sigma`` is ``two_sided``; ``bits_per_dim`` is the released code's sigmoid(d^2) with d in raw bits/dim.
    """
    return torch.sigmoid((moments.std * distance).square()) if unit == "bits_per_dim" else two_sided(distance)


def two_sided(distance: Tensor) -> Tensor:
    """Return sqrt(1 + d^2) - 1 of distances (B,) in standard deviations (the pseudo-Huber loss).

    Quadratic near the threshold, linear far away: its slope d / sqrt(1 + d^2) never exceeds one and never fades, so
    an image four deviations off pulls as hard as one that is forty off, from either side.
    """
    return torch.sqrt(1 + distance.square()) - 1
