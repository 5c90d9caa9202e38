"""SUGAR: a small network finds another face for each of many identities, and the model draws that one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearn.core.randomness import Randomness
from unlearn.core.validation import above, at_least
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import HasLatents
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import check_encoder
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.gan.identity_replacement import Replacing
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss


@dataclass(frozen=True, kw_only=True)
class Sugar(Objective[HasLatents]):
    """Draw each forget identity as a surrogate that a network finds for it, and its neighbours as theirs.

    w_t = w_avg - d f(w_id) / |f(w_id)|, w_id = w_u - w_avg, lengths over all layers. Before the first step f is trained
    on the target alone: the target's last features of w_t are to be near those of w_u, and its images of them unlike,

    L_f = features MSE(F(w_u), F(w_t)) - T(w_u, w_t),  T the other parts of ``likeness``;

    then f holds still and L = local T(w_u, w_t) + adjacent sum_i T(w_u + D_i, w_t(w_u + D_i)), as in ``guide`` but for
    the aims of neighbours, which are f's own. The paper keeps the rest by ``retain=ewc`` with a Fisher information of
    latents near the identities.

    Differences from the released code, which was read where the paper's text could not be had: f is a perceptron with
    one hidden layer beside the identity, the same for every layer's w, in place of a U-Net; it takes a number of steps
    in place of epochs that stop early; the identity part of L_f is not scaled by the others' values. The released
    penalty is lambda sum_i F_i (theta_i - theta_target,i)^2, and that of ``ewc`` has lambda / 2: lambda is
    ``strength: 2 lambda``. Its F is asked for by ``retain={name: ewc, latents: near}``.

    Args:
        distance: d, a layer; null takes |w_id|. The released d = 20 of 14 layers is 5.35 a layer.
        surrogate_steps: steps of f, of Adam with ``surrogate_lr``.
        surrogate_lr: see above.
        surrogate_width: units of f's hidden layer.
        surrogate_features: weight of the features in L_f. Nothing else bounds how unlike the image becomes: where all
            surrogates come out alike, or as no face, it is too small for the likeness.
        local: weight of the first term.
        adjacent: weight of the second.
        neighbours: latents near each identity a step.
        reach: largest |D_i|, a layer; null takes half of |w_id|.
        pool: as in ``guide``.
        likeness: T.
        inversion: how the latents of images are found.
        encoder: TorchScript file that maps images to latents, in place of the inversion.

    State:
        f0, f1, ...: the weights of f.

    Reference:
        Nguyen et al., SUGAR: A Sweeter Spot for Generative Unlearning of Many Identities, 2026. arXiv:2512.06562
    """

    distance: float | None = None
    surrogate_steps: int = 100
    surrogate_lr: float = 1e-3
    surrogate_width: int = 128
    surrogate_features: float = 0.01
    local: float = 1.0
    adjacent: float = 1.0
    neighbours: int = 2
    reach: float | None = None
    pool: int | None = 64
    likeness: PerceptualLoss = field(default_factory=PerceptualLoss)
    inversion: Inversion = field(default_factory=Inversion)
    encoder: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        at_least(self, surrogate_steps=0, surrogate_width=1, surrogate_features=0)
        above(self, distance=0, surrogate_lr=0)
        _ = self.replacing

    @property
    def replacing(self) -> Replacing:
        """The two terms."""
        return Replacing(
            name="sugar",
            local=self.local,
            adjacent=self.adjacent,
            neighbours=self.neighbours,
            reach=self.reach,
            pool=self.pool,
            likeness=self.likeness,
            inversion=self.encoder or self.inversion,
        )

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse nets and encoders that do not look at such images."""
        self.likeness.check(splits[split].dataset.info)
        check_encoder(self.encoder, splits[split].dataset.info)

    def prepare(self, model: Any, context: Context) -> None:
        """Find the identities' latents, train f, and keep the target's images of the surrogates."""
        terms = self.replacing
        latents = terms.latents(model, context).to(model.dtype)
        context.state["mean"] = model.w_avg.detach().clone()
        surrogate = self.train(model, latents, context)
        context.state.update({f"f{number}": value.detach() for number, value in enumerate(surrogate.parameters())})
        terms.prepare(model, context, self, lambda w, step: self.aim(surrogate, w + step, context.state["mean"]))

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the loss an identity, (B,); diagnostics: the values of both terms."""
        surrogate = None if self.pool is not None else self._restored(context)
        mean = context.state["mean"]
        return self.replacing(model, batch, context, lambda w, step: self.aim(surrogate, w + step, mean))

    def aim(self, surrogate: nn.Module | None, w: Tensor, mean: Tensor) -> Tensor:
        """Return w_t of latents w (B, num_ws, w_dim), with the gradient of f."""
        if surrogate is None:
            raise RuntimeError("the surrogates of a pool are known before the first step")
        away = w - mean.to(w)
        found = surrogate(away)
        if self.distance is None:
            lengths = away.flatten(1).norm(dim=1)
        else:
            lengths = away.new_full((len(w),), self.distance * math.sqrt(w.shape[1]))
        scale = lengths / found.flatten(1).norm(dim=1).clamp(min=1e-12)
        aim: Tensor = mean.to(w) - scale[:, None, None] * found
        return aim

    def train(self, model: Any, latents: Tensor, context: Context) -> nn.Module:
        """Return f, trained on latents (N, num_ws, w_dim); every rank finds the same."""
        stream = Randomness(context.randomness.seed, "sugar/surrogate")
        surrogate = self._new(latents, stream)
        optimiser = torch.optim.Adam(surrogate.parameters(), lr=self.surrogate_lr)
        mean = context.state["mean"]
        moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in moving:
            parameter.requires_grad_(False)
        unlike = self.unlike
        try:
            with torch.enable_grad():
                for step in range(self.surrogate_steps):
                    order = stream.at(step).permutation(len(latents))[:SURROGATE_BATCH].to(latents.device)
                    w = latents[order]
                    optimiser.zero_grad()
                    self.surrogate_loss(model, surrogate, w, mean, unlike).mean().backward()
                    optimiser.step()
        finally:
            for parameter in moving:
                parameter.requires_grad_(True)
        return surrogate.requires_grad_(False)

    @property
    def unlike(self) -> PerceptualLoss | None:
        """T without the features, None where nothing is left of it."""
        kept = self.likeness
        if not (kept.pixels or kept.perceptual or kept.identity):
            return None
        return PerceptualLoss(**{**vars(kept), "features": 0.0})

    def surrogate_loss(
        self, model: Any, surrogate: nn.Module, w: Tensor, mean: Tensor, unlike: PerceptualLoss | None
    ) -> Tensor:
        """Return L_f of latents w (B, num_ws, w_dim), (B,)."""
        with torch.no_grad():
            images, features = model.both(w)
        found, theirs = model.both(self.aim(surrogate, w, mean))
        loss: Tensor = self.surrogate_features * (features - theirs).square().flatten(1).mean(dim=1)
        return loss if unlike is None else loss - unlike.between(unlike.of_images(found), unlike.of_images(images))

    def _new(self, like: Tensor, stream: Randomness) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream.generator().initial_seed())
            made = Surrogate(like.shape[-1], self.surrogate_width)
        return made.to(like)

    def _restored(self, context: Context) -> nn.Module:
        mean = context.state["mean"]
        surrogate = self._new(mean, Randomness(0))
        for number, parameter in enumerate(surrogate.parameters()):
            parameter.data = context.state[f"f{number}"].to(device=context.device)
        return surrogate.to(context.device).requires_grad_(False)


class Surrogate(nn.Module):
    """f(v) = v + B relu(A v + a) + b for each layer's v.

    Args:
        size: values of v.
        width: of the hidden layer.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(size, width), nn.Linear(width, size)

    def forward(self, v: Tensor) -> Tensor:
        """Map (..., size) to the same."""
        return v + self.outer(F.relu(self.inner(v)))  # type: ignore[no-any-return]


SURROGATE_BATCH = 8
"""Identities a step of f."""
