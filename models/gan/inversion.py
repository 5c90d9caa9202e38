"""Inversion: the latent whose image is nearest to a given one, found by gradient descent."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt, check_ranges
from unlearn.models.capabilities import ImageGenerator

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of images (B, C, H, W) in [-1, 1] to others, (B,), with gradient."""


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """Optimize a latent with Adam, starting from the mean of w.

    The learning rate rises over the first 5 % of the steps and falls along a cosine over the last 25 %. To explore,
    noise of deviation ``explore`` sigma_w t^2 is added to the latent, where t falls from 1 to 0 over the first three
    quarters and sigma_w is the root of the mean squared distance of w from its mean.

    Differences from the paper: the layers' noise maps stay those of the generator, where the paper optimizes and
    regularises them together with w; detail that would go into a noise map is lost here. The distance is one of pixels
    and features, where the paper's is perceptual.

    Args:
        space: one w for all layers, or one per layer (w+), which fits better and strays further from sampled w.
        steps: of the optimizer.
        lr: largest learning rate.
        pixels: weight of the mean squared difference of pixels.
        features: weight of the distance that the caller gives, if any.
        explore: see above; 0 for none.

    Reference:
        Karras et al., StyleGAN2, 2020, appendix D. arXiv:1912.04958.
        w+: Abdal et al., Image2StyleGAN, 2019. arXiv:1904.03189
    """

    space: Literal["w", "w+"] = "w"
    steps: PositiveInt = 500
    lr: PositiveFloat = 0.1
    pixels: NonNegativeFloat = 1.0
    features: NonNegativeFloat = 1.0
    explore: NonNegativeFloat = 0.05

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(
        self,
        model: ImageGenerator,
        images: Tensor,
        ids: Tensor,
        randomness: Randomness,
        distance: Distance | None = None,
    ) -> Tensor:
        """Return the latents of images (B, C, H, W) in [-1, 1]: (B, w_dim), or one per layer (B, num_ws, w_dim).

        Each image is inverted as if it were alone. The model is not changed.

        Args:
            model: a GAN.
            images: what to find.
            ids: of the exploring noise, (B,) int64.
            randomness: of the exploring noise.
            distance: a further one, of features.
        """
        mean = model.w_avg.detach()
        spread = self._spread(model, mean) if self.explore else 0.0
        shape = (len(mean),) if self.space == "w" else (model.num_ws, len(mean))
        w = mean.expand(len(images), *shape).clone().requires_grad_()
        optimizer = torch.optim.Adam([w], lr=self.lr)
        with torch.enable_grad():
            for step in range(self.steps):
                t = max(0.0, 1 - step / self.steps / 0.75)  # 1 ... 0 over the first three quarters
                noisy, deviation = w, self.explore * spread * t**2
                if deviation:
                    noisy = w + deviation * randomness.child("explore").at(step).normal(ids, shape, w.dtype)
                # the gradient of the sum is each image's own; unlike backward() it leaves the model's gradients alone
                (w.grad,) = torch.autograd.grad(self.loss(model, noisy, images, distance).sum(), w)
                optimizer.param_groups[0]["lr"] = self.rate(step)
                optimizer.step()
        return w.detach()

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        done = step / self.steps
        fall = min(1.0, (1 - done) / 0.25)
        return self.lr * (1 - math.cos(math.pi * fall)) / 2 * min(1.0, (step + 1) / self.steps / 0.05)

    def loss(self, model: ImageGenerator, w: Tensor, images: Tensor, distance: Distance | None) -> Tensor:
        """Return the distance of the images of w to the given ones, (B,)."""
        found = model.synthesis(w)
        total: Tensor = self.pixels * (found - images).square().flatten(1).mean(dim=1)
        return total if distance is None else total + self.features * distance(found, images)

    @torch.no_grad()
    def _spread(self, model: ImageGenerator, mean: Tensor) -> float:
        ids = torch.arange(1024, device=mean.device)
        w = model.mapping(model.latent(ids, Randomness(0, "spread")))
        return float((w - mean).square().sum(dim=1).mean().sqrt())
