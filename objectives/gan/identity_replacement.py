"""Identities are rendered as others: a local and an adjacency-aware term around a substitute latent for each."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, NonNegativeInt, PositiveInt
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import check_encoder
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.gan.latent_cache import (
    key_of,
    offsets,
    recall_drawings,
    recall_rows,
    remember_drawings,
    remember_latents,
    remember_rows,
)
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss, Seen


@dataclass(frozen=True, kw_only=True)
class IdentityReplacement(Objective[ImageGenerator]):
    """Train the generator to render w_u as the original generator renders a substitute, and likewise around w_u.

    L = local T(w_u, aim(w_u)) + adjacent sum_i T(w_u + D_i, aim(w_u + D_i)), D = a (w_r - w_u) / |w_r - w_u|, a uniform
    in [0, reach sqrt(num_ws)), w_r drawn, i = 1 ... neighbours, T a ``PerceptualLoss``; lengths are over all layers.
    All images of the trained model come from one forward pass. Subclasses say what the substitute is: ``aim``.

    Several identities are forgotten at once, each with its own aim; the latent of an image is found by ``inversion``.

    Args:
        local: weight of the first term.
        adjacent: weight of the second.
        neighbours: latents near each identity per step.
        reach: largest |D_i| per layer; null takes half of |w_u - w_avg|.
        pool: number of offsets D sampled once per identity; the target's images of their aims are computed once, so
            that no second model is held. null draws new offsets at each step, as the papers do.
        likeness: T.
        inversion: how the latents of images are found.
        encoder: TorchScript file that maps images to latents, in place of the inversion.

    State, also read by evaluators:
        mean: w_avg of the target.
        identity_ids: the split's items, (N,).
        identity_latents: their latents, (N, num_ws, w_dim).
        target_latents: the aims of these.
    """

    local: NonNegativeFloat = 1.0
    adjacent: NonNegativeFloat = 1.0
    neighbours: NonNegativeInt = 2
    reach: NonNegativeFloat | None = None
    pool: PositiveInt | None = 64
    likeness: PerceptualLoss = field(default_factory=PerceptualLoss)
    inversion: Inversion = field(default_factory=Inversion)
    encoder: str | None = None

    method: ClassVar[str]
    """Names the precomputed images and the stream of the offsets."""

    prepares_with: ClassVar[tuple[str, ...]] = ("pool", "inversion")

    @abstractmethod
    def aim(self, w: Tensor, steps: Tensor, state: Mapping[str, Any]) -> Tensor:
        """Return the latents that take the place of w_u + D, (B, num_ws, w_dim).

        Args:
            w: latents w_u of identities, (B, num_ws, w_dim).
            steps: offsets D from them, of the same shape; 0 for the identities themselves.
            state: of the term.
        """

    def learn(self, model: ImageGenerator, latents: Tensor, context: Context[ImageGenerator]) -> None:
        """Learn, once and from the target alone, what ``aim`` needs of the identities' latents; write it to the state.

        By default nothing is learned.
        """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.local or self.near):
            raise ValueError("local and adjacent are both 0, or adjacent has no neighbours; one of the two must stay")

    @property
    def radius(self) -> float | None:
        """Largest |D_i| per layer; None for half of |w_u - w_avg|."""
        return self.reach

    @property
    def near(self) -> int:
        """Number of neighbours of an identity that enter a step."""
        return self.neighbours if self.adjacent else 0

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse nets and encoders that do not take such images."""
        self.likeness.check(splits[split].dataset.info)
        check_encoder(self.encoder, splits[split].dataset.info)

    @override
    def prepare(self, model: ImageGenerator, context: Context[ImageGenerator]) -> None:
        """Find the identities' latents, and precompute the target's images of the aims: theirs and those of the pool.

        Terms share these images where all that the aims depend on is alike.
        """
        state = context.state
        state["latents"] = remember_latents(model, context, self.encoder or self.inversion)
        ids = context.splits[context.split].ids
        w = self._w(context, ids)
        state["mean"] = model.w_avg.detach().clone()
        self.learn(model, w.to(model.dtype), context)
        drawn = f"{self.method}_{key_of(self, state['latents'])}"
        state["drawn"], state["steps"] = drawn, f"{drawn}_steps"
        stream = Randomness(context.randomness.seed, f"{self.method}/neighbours")

        # keys of the rows: id * each is the identity itself, id * each + 1 ... id * each + pool are its offsets
        def steps(keys: Tensor) -> Tensor:
            found = offsets(model, self._w(context, keys // self._each), keys, stream, self.radius)
            found[keys % self._each == 0] = 0  # the identity itself
            return found

        def aims(keys: Tensor) -> Tensor:
            w = self._w(context, keys // self._each)
            return self.aim(w, recall_rows(context, state["steps"], keys.to(w.device)).to(w.dtype), state)

        state["identity_ids"], state["identity_latents"] = ids, w
        with torch.no_grad():
            state["target_latents"] = self.aim(w, torch.zeros_like(w), state)
        keys = (ids[:, None] * self._each + torch.arange(self._each)).flatten()
        remember_rows(context, state["steps"], keys, steps)
        remember_drawings(model, context, drawn, keys, self.likeness, aims)

    def __call__(self, model: ImageGenerator, batch: Batch, context: Context[ImageGenerator]) -> Values:
        """Return the loss per identity, (B,); diagnostics: the values of the two terms."""
        ids, state = batch["id"], context.state
        n, near = len(ids), self.near
        w = self._w(context, ids).to(model.dtype)
        keys = [ids * self._each] if self.local else []
        draws = [context.randomness.child(f"neighbour {number}") for number in range(near)]
        if self.pool is None:
            steps = [offsets(context.reference(), w, ids, draw, self.radius) for draw in draws]
        else:
            near_keys = [ids * self._each + 1 + draw.integers(ids, self.pool) for draw in draws]
            steps = [recall_rows(context, state["steps"], chosen).to(w.dtype) for chosen in near_keys]
            keys += near_keys
        # one forward pass: the identities first, where they have a weight, then their neighbours
        mine = self.likeness.seen(model, torch.cat([*([w] if self.local else []), *(w + step for step in steps)]))
        theirs = [recall_drawings(context, state["drawn"], torch.cat(keys))] if keys else []
        if self.pool is None and near:
            with torch.no_grad():
                aims = torch.cat([self.aim(w, step, state) for step in steps])
                theirs.append(self.likeness.seen(context.reference(), aims))
        values = self.likeness.between(mine, Seen.cat(theirs)).unflatten(0, (-1, n))
        local = values[0] if self.local else values.new_zeros(n)
        adjacent = values[1 if self.local else 0 :].sum(dim=0)
        total = self.local * local + self.adjacent * adjacent
        return Values(total, {"local": local.detach(), "adjacent": adjacent.detach()})

    @property
    def _each(self) -> int:
        """Number of latents kept per identity: its own, and those of the pool."""
        return 1 + (self.pool if self.pool is not None and self.near else 0)

    def _w(self, context: Context[ImageGenerator], ids: Tensor) -> Tensor:
        return context.recall(context.state["latents"], context.split, ids.to(context.device))
