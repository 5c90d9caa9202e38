"""Latents of items and drawn latents, and what the frozen target draws of them, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unlearn.data.base import Batch
from unlearn.models.identity_latents import latents_of
from unlearn.models.inversion import Inversion
from unlearn.objectives.base import Context
from unlearn.objectives.gan.likeness import Likeness, Seen, unpack
from unlearn.randomness import Randomness


def key_of(*settings: object) -> str:
    """Return a short name of settings, by which terms that agree on them share what is computed once."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def remember_latents(model: Any, context: Context, inversion: Inversion | str) -> str:
    """Find the latents of the split's items once; return the name for ``context.recall``, rows (n, num_ws, w_dim).

    Args:
        model: the target.
        context: of the term.
        inversion: how those of images are found, or the path of an encoder.
    """
    name = f"latents_{key_of(inversion)}"
    stream = Randomness(context.randomness.seed, "inversion")
    dataset = context.splits[context.split].dataset

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        return latents_of(model, dataset, batch["id"], inversion, stream), torch.ones_like(batch["id"])

    context.remember(name, context.split, compute)
    return name


def remember_drawings(
    model: Any, context: Context, name: str, ids: Tensor, likeness: Likeness, latents: Callable[[Tensor], Tensor]
) -> None:
    """Keep what the target draws, before the first step, while the model still is the target.

    Args:
        model: that moves.
        context: of the term; its state gets the shapes.
        name: by which ``recall_drawings`` finds them.
        ids: (N,) int64, of any meaning.
        likeness: what is compared.
        latents: ids (b,) -> latents (b * m, num_ws, w_dim), m the same for all.
    """
    if context.remembered is None:
        raise RuntimeError("there is no place for the target's values: the module was given none")

    def compute(part: Tensor) -> tuple[Tensor, Tensor]:
        found = likeness.seen(model, latents(part.to(context.device)))
        rows = found.pack()
        return rows, torch.full((len(part),), len(rows) // len(part))

    with torch.no_grad():
        # the shapes are asked for on every rank, also where another one draws or a file is there already
        context.state["shapes"] = likeness.seen(model, latents(ids[:1].to(context.device))[:1]).shapes
    context.remembered.put(f"{context.split}.{name}", ids, compute)


def recall_drawings(context: Context, name: str, ids: Tensor) -> Seen:
    """Return what the target draws of the latents of ``ids``, one after the other."""
    if context.remembered is None:
        raise RuntimeError("there is no place for the target's values: the module was given none")
    return unpack(context.remembered.get(f"{context.split}.{name}", ids), context.state["shapes"])
