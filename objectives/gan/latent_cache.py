"""Latents of items and drawn latents, and what the frozen target draws of them, computed once."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.capabilities import ImageGenerator, Model
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import latents_of, layered
from unlearn.objectives.base import Context
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss, Seen, unpack


def key_of(*settings: object) -> str:
    """Return a short name of settings, by which terms that agree on them share what is computed once."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def remember_latents(model: ImageGenerator, context: Context[Model], inversion: Inversion | str) -> str:
    """Find the latents of the split's items once; return the name for ``context.recall``, rows (n, num_ws, w_dim).

    ``inversion`` says how those of images are found; it may be the path of an encoder.
    """
    name = f"latents_{key_of(inversion)}"
    stream = Randomness(context.randomness.seed, "inversion")
    dataset = context.splits[context.split].dataset

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        return latents_of(model, dataset, batch["id"], inversion, stream), torch.ones_like(batch["id"])

    context.remember(name, context.split, compute)
    return name


@torch.no_grad()
def offsets(model: ImageGenerator, w: Tensor, keys: Tensor, stream: Randomness, reach: float | None) -> Tensor:
    """Return one D = a (w_r - w) / |w_r - w| per latent w (B, num_ws, w_dim), a uniform in [0, longest).

    Args:
        model: whose mapping draws w_r.
        w: the latents; lengths are over all layers.
        keys: of the draws, (B,) int64.
        stream: of the draws.
        reach: longest |D| per layer; None takes half of |w - w_avg|.
    """
    keys = keys.to(w.device)
    drawn = layered(model, model.mapping(model.latent(keys, stream))).to(w)
    away = (drawn - w).flatten(1)
    # a vector of length r in each layer has the length r sqrt(num_ws) over all layers
    longest = (w - model.w_avg.to(w)).flatten(1).norm(dim=1) / 2 if reach is None else reach * math.sqrt(w.shape[1])
    lengths = longest * stream.child("length").uniform(keys, (), w.dtype)
    found: Tensor = away / away.norm(dim=1, keepdim=True) * lengths[:, None]
    return found.view_as(w)


def remember_rows(context: Context[Model], name: str, keys: Tensor, compute: Callable[[Tensor], Tensor]) -> None:
    """Precompute one row of values per key, before the first step; ranks share the work.

    ``keys`` (N,) int64 are of any meaning; ``compute`` maps some of them, (b,), on the device, to rows (b, ...).
    """
    context.cache.put(
        f"{context.split}.{name}", keys, lambda part: (compute(part.to(context.device)), torch.ones_like(part))
    )


def recall_rows(context: Context[Model], name: str, keys: Tensor) -> Tensor:
    """Return the rows of keys (b,), (b, ...), on the device of the keys."""
    return context.cache.get(f"{context.split}.{name}", keys)


def remember_drawings(
    model: ImageGenerator,
    context: Context[Model],
    name: str,
    keys: Tensor,
    likeness: PerceptualLoss,
    latents: Callable[[Tensor], Tensor],
) -> None:
    """Precompute what the target draws of one latent per key, while the model still is the target.

    ``keys`` (N,) int64 are of any meaning; ``latents`` maps some of them, (b,), on the device, to latents (b, w_dim) or
    (b, num_ws, w_dim); ``likeness`` says what is kept of the images, whose shapes go into the state of the term.
    """
    with torch.no_grad():
        # computed on every rank, also where another one draws, or where the file exists already
        context.state["shapes"] = likeness.seen(model, latents(keys[:1].to(context.device))).shapes
    remember_rows(context, name, keys, lambda part: likeness.seen(model, latents(part)).pack())


def recall_drawings(context: Context[Model], name: str, keys: Tensor) -> Seen:
    """Return what the target drew of the latents of keys (b,)."""
    return unpack(recall_rows(context, name, keys), context.state["shapes"])
