"""Identities are drawn as others: local and adjacency-aware terms, around a target latent for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearn.core.randomness import Randomness
from unlearn.core.validation import at_least
from unlearn.data.base import Batch
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import layered
from unlearn.objectives.base import Context, Values
from unlearn.objectives.gan.latent_cache import (
    key_of,
    recall_drawings,
    recall_rows,
    remember_drawings,
    remember_latents,
    remember_rows,
)
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss

Aim = Callable[[Tensor, Tensor], Tensor]
"""Of latents w_u (B, num_ws, w_dim) of identities and steps D from them, alike in shape, to what stands for w_u + D."""


@dataclass(frozen=True, kw_only=True)
class Replacing:
    """The image of w_u becomes the target's image of an aim, and so do the images of latents near w_u.

    L = local T(w_u, w_t) + adjacent sum_i T(w_u + D_i, aim of w_u + D_i), D = a (w_r - w_u) / |w_r - w_u|, a uniform in
    [0, reach sqrt(num_ws)), w_r drawn, i = 1 ... neighbours, T a ``PerceptualLoss``; lengths are over all layers. The
    images of the moving model come of one forward pass.

    Args:
        name: of the method, by which its images are kept.
        local: weight.
        adjacent: weight.
        neighbours: latents near each identity a step.
        reach: largest length of D, a layer; None for half of |w_u - w_avg|.
        pool: so many D an identity are drawn once, and the target's images of their aims are computed once, so that no
            second model is held; None draws them anew at each step, as the paper does.
        likeness: T.
        inversion: how the latents of images are found, or the path of an encoder.
    """

    name: str
    local: float = 1.0
    adjacent: float = 1.0
    neighbours: int = 2
    reach: float | None = None
    pool: int | None = None
    likeness: PerceptualLoss = field(default_factory=PerceptualLoss)
    inversion: Inversion | str = field(default_factory=Inversion)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        at_least(self, local=0, adjacent=0, neighbours=0, reach=0, pool=1)
        if not (self.local or self.near):
            raise ValueError("local and adjacent are both 0, or adjacent has no neighbours; one of the two must stay")

    @property
    def near(self) -> int:
        """Neighbours of an identity that a step sees."""
        return self.neighbours if self.adjacent else 0

    def latents(self, model: Any, context: Context) -> Tensor:
        """Find the latents of the split's items once, and return those of all, (N, num_ws, w_dim)."""
        context.state["latents"] = remember_latents(model, context, self.inversion)
        return self._w(context, context.splits[context.split].ids)

    def prepare(self, model: Any, context: Context, method: object, aim: Aim) -> None:
        """Keep the target's images of the aims: of the identities themselves, and of those near them in the pool.

        ``latents`` comes before it. Terms share what is kept where ``method``, all that aims depend on, is alike.
        Evaluators find the split's items as ``identity_ids`` in the state, their latents as ``identity_latents``, and
        their aims as ``target_latents``.
        """
        drawn = f"{self.name}_{key_of(method, context.state['latents'])}"
        context.state["drawn"], context.state["steps"] = drawn, f"{drawn}_steps"
        stream = Randomness(context.randomness.seed, f"{self.name}/neighbours")

        def steps(keys: Tensor) -> Tensor:
            w = self._w(context, keys // self._each)
            found = self._steps(model, w, keys.to(w.device), stream)
            found[keys % self._each == 0] = 0  # the identity itself
            return found

        def aims(keys: Tensor) -> Tensor:
            w = self._w(context, keys // self._each)
            return aim(w, recall_rows(context, context.state["steps"], keys.to(w.device)).to(w.dtype))

        ids = context.splits[context.split].ids
        w = self._w(context, ids)
        context.state["identity_ids"], context.state["identity_latents"] = ids, w
        with torch.no_grad():
            context.state["target_latents"] = aim(w, torch.zeros_like(w))
        keys = (ids[:, None] * self._each + torch.arange(self._each)).flatten()
        remember_rows(context, context.state["steps"], keys, steps)
        remember_drawings(model, context, drawn, keys, self.likeness, aims)

    def __call__(self, model: Any, batch: Batch, context: Context, aim: Aim) -> Values:
        """Return the loss an identity, (B,); diagnostics: the values of the two terms."""
        ids = batch["id"]
        n, near = len(ids), self.near
        w = self._w(context, ids).to(model.dtype)
        keys = [ids * self._each] if self.local else []
        draws = [context.randomness.child(f"neighbour {number}") for number in range(near)]
        if self.pool is None:
            steps = [self._steps(context.reference(), w, ids, draw) for draw in draws]
        else:
            near_keys = [ids * self._each + 1 + draw.integers(ids, self.pool) for draw in draws]
            steps = [recall_rows(context, context.state["steps"], chosen).to(w.dtype) for chosen in near_keys]
            keys += near_keys
        mine = self.likeness.seen(model, torch.cat([*([w] if self.local else []), *(w + step for step in steps)]))
        theirs = recall_drawings(context, context.state["drawn"], torch.cat(keys)) if keys else None
        if self.pool is None and near:
            with torch.no_grad():
                aims = torch.cat([aim(w, step) for step in steps])
                fresh = self.likeness.seen(context.reference(), aims)
                theirs = fresh if theirs is None else theirs.joined(fresh)
        if theirs is None:
            raise RuntimeError("neither of the two terms has anything to compare")
        values = self.likeness.between(mine, theirs).unflatten(0, (-1, n))
        local = values[0] if self.local else values.new_zeros(n)
        adjacent = values[1 if self.local else 0 :].sum(dim=0)
        total = self.local * local + self.adjacent * adjacent
        return Values(total, {"local": local.detach(), "adjacent": adjacent.detach()})

    @property
    def _each(self) -> int:
        """Latents kept of each identity: its own, and those of the pool."""
        return 1 + (self.pool if self.pool is not None and self.near else 0)

    def _w(self, context: Context, ids: Tensor) -> Tensor:
        return context.recall(context.state["latents"], context.split, ids.to(context.device))

    @torch.no_grad()
    def _steps(self, model: Any, w: Tensor, keys: Tensor, draw: Randomness) -> Tensor:
        """Return one D for each of the latents w (B, num_ws, w_dim), drawn by keys (B,)."""
        drawn = layered(model, model.mapping(model.latent(keys, draw))).to(w)
        away = (drawn - w).flatten(1)
        longest = self.reach_of(model, w)
        lengths = longest * draw.child("length").uniform(keys, (), w.dtype)
        found: Tensor = away / away.norm(dim=1, keepdim=True) * lengths[:, None]
        return found.view_as(w)

    def reach_of(self, model: Any, w: Tensor) -> Tensor:
        """Return the largest length of D for each identity, (B,)."""
        if self.reach is not None:
            return w.new_full((len(w),), self.reach * math.sqrt(w.shape[1]))
        lengths: Tensor = (w - model.w_avg.to(w)).flatten(1).norm(dim=1)
        return lengths / 2
