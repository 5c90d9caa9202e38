"""The noise schedule of a diffusion model, and deterministic DDIM along it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

PREDICTED = ("epsilon", "sample", "v_prediction")
"""What a network may predict, in the words of diffusers."""


class NoiseSchedule(nn.Module):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with abar_t from a scheduler of diffusers.

    Args:
        scheduler: its noise schedule and prediction type count; sampling is DDIM whatever its class.
    """

    alphas: Tensor
    """abar_t, (T,)."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        if scheduler.config.prediction_type not in PREDICTED:
            raise ValueError(
                f"prediction_type is {scheduler.config.prediction_type!r}; it must be one of {', '.join(PREDICTED)}"
            )
        self.config = scheduler.config
        self.register_buffer("alphas", scheduler.alphas_cumprod.clone().float(), persistent=False)

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sqrt(abar_t), sqrt(1 - abar_t)) of t (B,), each (B, 1, 1, 1), in the dtype of ``like``."""
        kept = self.alphas[t].to(like.dtype)[:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t of clean items and noise, both (B, C, H, W)."""
        signal, scale = self.scales(t, x0)  # Ho et al., DDPM, 2020, eq. 4
        return signal * x0 + scale * noise

    def denoised(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the x_0 that ``eps`` implies, (B, C, H, W)."""
        signal, scale = self.scales(t, x)
        return (x - scale * eps) / signal

    def eps(self, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return eps, (B, C, H, W), from what the network predicts of x_t."""
        kind = self.config.prediction_type
        if kind == "epsilon":
            return raw
        signal, noise = self.scales(t, x)
        if kind == "sample":  # x_t = signal x_0 + noise eps, solved for eps
            return (x - signal * raw) / noise
        # velocity v = signal eps - noise x_0 (Salimans and Ho 2022, appendix D): signal v + noise x_t = eps
        return signal * raw + noise * x

    def times(self, steps: int) -> Tensor:
        """Return the timesteps of a trajectory, (S,) int64, falling."""
        scheduler = DDIMScheduler.from_config(self.config)
        scheduler.set_timesteps(steps)
        return scheduler.timesteps.to(self.alphas.device)  # type: ignore[no-any-return]

    def trajectory(
        self, x: Tensor, steer: Callable[[int, Tensor, Tensor], Tensor], steps: int, first: int, clip: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the step, x after it) of deterministic DDIM.

        Args:
            x: state before step ``first``, (B, C, H, W).
            steer: (number of the step, x_t, t of (B,)) -> eps.
            steps: of the whole trajectory.
            first: step to begin with.
            clip: whether the implied x_0 is clipped to [-1, 1].

        Reference:
            Song et al., Denoising Diffusion Implicit Models, 2021, eq. 12 with sigma = 0. arXiv:2010.02502
        """
        # eps is already converted, whatever the network predicts; the last step leads to abar = 1, the clean item
        scheduler = DDIMScheduler.from_config(
            self.config, prediction_type="epsilon", clip_sample=clip, set_alpha_to_one=True
        )
        scheduler.set_timesteps(steps)
        for number, t in enumerate(scheduler.timesteps.tolist()[first:], first):
            eps = steer(number, x, torch.full((len(x),), t, device=x.device))
            # a clipped x_0 needs the eps that belongs to it, or errors add up from step to step
            x = scheduler.step(eps, t, x, use_clipped_model_output=True, return_dict=False)[0]
            yield number, x
