"""SUGAR: a small network finds another face for each of many identities, and the model draws that one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from unlearn.models.base import frozen
from unlearn.models.capabilities import ImageGenerator
from unlearn.objectives.base import Context
from unlearn.objectives.gan.identity_replacement import IdentityReplacement
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss

SURROGATE_BATCH = 8
"""Identities per step of f."""


@dataclass(frozen=True, kw_only=True)
class Sugar(IdentityReplacement):
    """Draw each forget identity as a surrogate that a network finds for it, and its neighbours as theirs.

    w_t = w_avg - d f(w_id) / |f(w_id)|, w_id = w_u - w_avg, f(v) = v + B relu(A v + a) + b for each layer's v, lengths
    over all layers. Before the first step f is trained on the target alone, to bring the target's last features of w_t
    near those of w_u and to make its images of the two unlike:

    L_f = features MSE(F(w_u), F(w_t)) - T(w_u, w_t),  T the other parts of ``likeness``;

    then f is frozen, and the aim of w_u + D is w_t(w_u + D): neighbours have surrogates of their own. See
    ``IdentityReplacement`` for the two terms and their settings. The paper keeps the rest by ``retain=ewc`` with a
    Fisher information of latents near the identities.

    Differences from the released code, which was read where the paper's text was not available: f is a perceptron with
    one hidden layer and a skip connection, the same for every layer's w, in place of a U-Net; it takes a number of
    steps in place of epochs that stop early; the identity part of L_f is not scaled by the others' values. The released
    penalty is lambda sum_i F_i (theta_i - theta_target,i)^2, and that of ``ewc`` has lambda / 2: lambda is ``strength:
    2 lambda``. Its F is asked for by ``retain={name: ewc, latents: near}``.

    Args:
        distance: d per layer; null takes |w_id|. The released d = 20 of 14 layers is 5.35 per layer.
        surrogate_steps: steps of f, of Adam with ``surrogate_lr``.
        surrogate_lr: see above.
        surrogate_width: units of f's hidden layer.
        surrogate_features: weight of the features in L_f. Nothing else bounds how unlike the image becomes: where all
            surrogates come out alike, or as no face, it is too small for the likeness.

    State:
        f0, f1, f2, f3: A, a, B and b of f.

    Reference:
        Nguyen et al., SUGAR: A Sweeter Spot for Generative Unlearning of Many Identities, 2026. arXiv:2512.06562
    """

    distance: PositiveFloat | None = None
    surrogate_steps: NonNegativeInt = 100
    surrogate_lr: PositiveFloat = 1e-3
    surrogate_width: PositiveInt = 128
    surrogate_features: NonNegativeFloat = 0.01
    method: ClassVar[str] = "sugar"

    @override
    def aim(self, w: Tensor, steps: Tensor, state: Mapping[str, Any]) -> Tensor:
        mean = state["mean"].to(w)
        away = w + steps - mean
        found = surrogate(away, *(state[f"f{number}"].to(w) for number in range(4)))
        if self.distance is None:
            lengths = away.flatten(1).norm(dim=1)
        else:
            # a vector of length d in each layer has the length d sqrt(num_ws) over all layers
            lengths = away.new_full((len(w),), self.distance * math.sqrt(w.shape[1]))
        scale = lengths / found.flatten(1).norm(dim=1).clamp(min=1e-12)
        aim: Tensor = mean - scale[:, None, None] * found
        return aim

    @override
    def learn(self, model: ImageGenerator, latents: Tensor, context: Context[ImageGenerator]) -> None:
        """Train f on latents (N, num_ws, w_dim); every rank finds the same."""
        stream = Randomness(context.randomness.seed, "sugar/surrogate")
        weights = self._new(latents, stream)
        optimizer = torch.optim.Adam(weights.values(), lr=self.surrogate_lr)
        trained = {"mean": context.state["mean"], **weights}
        with frozen(model), torch.enable_grad():
            for step in range(self.surrogate_steps):
                order = stream.at(step).permutation(len(latents))[:SURROGATE_BATCH].to(latents.device)
                optimizer.zero_grad()
                self.surrogate_loss(model, latents[order], trained).mean().backward()
                optimizer.step()
        context.state.update({name: value.detach() for name, value in weights.items()})

    @property
    def unlike(self) -> PerceptualLoss | None:
        """T without the features, None where nothing is left of it."""
        kept = self.likeness
        if not (kept.pixels or kept.perceptual or kept.identity):
            return None
        return replace(kept, features=0.0)

    def surrogate_loss(self, model: ImageGenerator, w: Tensor, state: Mapping[str, Any]) -> Tensor:
        """Return L_f of latents w (B, num_ws, w_dim), (B,), for the f of a state."""
        with torch.no_grad():
            images, features = model.both(w)
        found, theirs = model.both(self.aim(w, torch.zeros_like(w), state))
        loss: Tensor = self.surrogate_features * (features - theirs).square().flatten(1).mean(dim=1)
        unlike = self.unlike
        return loss if unlike is None else loss - unlike.between(unlike.of_images(found), unlike.of_images(images))

    def _new(self, like: Tensor, stream: Randomness) -> dict[str, Tensor]:
        """Return A, a, B and b as torch initialises linear layers, in the place and float type of latents."""
        size = like.shape[-1]
        with stream.seeding():
            layers = nn.ModuleList([nn.Linear(size, self.surrogate_width), nn.Linear(self.surrogate_width, size)])
        return {f"f{number}": value for number, value in enumerate(layers.to(like).parameters())}


def surrogate(v: Tensor, inner: Tensor, shift: Tensor, outer: Tensor, end: Tensor) -> Tensor:
    """Return f(v) = v + B relu(A v + a) + b of v (..., w_dim): A (width, w_dim), a (width,), B (w_dim, width), b."""
    return v + F.linear(F.relu(F.linear(v, inner, shift)), outer, end)
