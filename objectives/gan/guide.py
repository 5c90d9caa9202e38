"""GUIDE: a face becomes the face on the other side of the mean, and the latents around it follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from unlearn.core.validation import at_least
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import HasLatents
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import check_encoder
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.gan.identity_replacement import Replacing
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss


@dataclass(frozen=True, kw_only=True)
class Guide(Objective[HasLatents]):
    """Draw each forget identity w_u as the target draws w_t, and what is near w_u as what is near w_t.

    w_t = w_avg - d (w_u - w_avg) / |w_u - w_avg| (``extrapolation``), or w_avg (``average``, the paper's baseline).
    L = local T(w_u, w_t) + adjacent sum_i T(w_u + D_i, w_t + D_i), T = ``likeness``, D_i = a (w_r - w_u) / |w_r - w_u|
    with a uniform and w_r drawn; lengths are over all layers. The paper's third term, on drawn latents, is
    ``retain=global_preservation``, so that the two sides can be combined in any way. What moves in the paper is the
    synthesis network (``scope={name: kind, kinds: [synthesis]}``).

    Several identities are forgotten at once, each with its own aim; the latent of an image is found by ``inversion``.

    The paper's lengths, d = 30 and a < 15, are of 14 layers of 512 values: 8.02 and 4.01 a layer. Its T is 0.01 of the
    squared difference of features, 1 LPIPS and 0.1 (1 - cos) of ArcFace, which ``likeness`` has by default with other
    nets; those by path take their places.

    Args:
        target: see above.
        distance: d, a layer; null takes |w_u - w_avg| over all layers, so that w_t is the reflection of w_u.
        local: weight of the first term.
        adjacent: weight of the second.
        neighbours: latents near each identity a step.
        reach: largest a, a layer; null takes half of d, or of |w_u - w_avg| where d is not given or 0.
        pool: so many D an identity are drawn once, and the target's images of them computed once, so that no second
            model is held; null draws them at each step, as the paper does.
        likeness: T.
        inversion: how the latents of images are found.
        encoder: TorchScript file that maps images to latents, in place of the inversion.

    Reference:
        Seo et al., Generative Unlearning for Any Identity, 2024. arXiv:2405.09879; weights and lengths as in the
        released code.
    """

    target: Literal["extrapolation", "average"] = "extrapolation"
    distance: float | None = None
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
        at_least(self, distance=0)
        if self.target == "average" and self.distance is not None:
            raise ValueError("distance has no effect with target=average; leave one of the two out")
        _ = self.replacing

    @property
    def replacing(self) -> Replacing:
        """The two terms."""
        reach = self.reach
        if reach is None and self.distance:
            reach = self.distance / 2
        return Replacing(
            name="guide",
            local=self.local,
            adjacent=self.adjacent,
            neighbours=self.neighbours,
            reach=reach,
            pool=self.pool,
            likeness=self.likeness,
            inversion=self.encoder or self.inversion,
        )

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse nets and encoders that do not look at such images."""
        self.likeness.check(splits[split].dataset.info)
        check_encoder(self.encoder, splits[split].dataset.info)

    def prepare(self, model: Any, context: Context) -> None:
        """Find the identities' latents, and keep the target's images of their aims."""
        terms = self.replacing
        terms.latents(model, context)
        context.state["mean"] = model.w_avg.detach().clone()
        terms.prepare(model, context, self, lambda w, step: self.aim(w, context.state["mean"]) + step)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the loss an identity, (B,); diagnostics: the values of both terms."""
        return self.replacing(model, batch, context, lambda w, step: self.aim(w, context.state["mean"]) + step)

    def aim(self, w: Tensor, mean: Tensor) -> Tensor:
        """Return w_t of w_u (B, num_ws, w_dim), for w_avg (w_dim,)."""
        away = w - mean.to(w)
        if self.target == "average":
            return w - away
        if self.distance is None:
            return w - 2 * away
        length = self.distance * math.sqrt(w.shape[1]) / away.flatten(1).norm(dim=1).clamp(min=1e-12)
        aim: Tensor = w - away - length[:, None, None] * away
        return aim
