"""What a diffusion model recalls of an item: what it denoises a noised copy to, and its denoising loss."""

import torch

from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.capabilities import ImageDenoiser
from unlearn.models.recalled import Recalled

SHARES = (0.25, 0.5, 0.75)
"""Noise levels that items are brought to, as shares of the number of timesteps."""

TIMES = 8
"""Number of timesteps, evenly spaced, that the denoising loss is averaged over."""

STEPS = 20
"""Steps of the whole trajectory that denoises."""


def recall(model: ImageDenoiser, batch: Batch, randomness: Randomness) -> Recalled:
    """Return what items are denoised to, conditioned on their own condition, and their denoising loss.

    The loss is the mean over values and over fixed timesteps of (eps - eps(x_t, t, c))^2, with noise that is the same
    for every model (Ho et al., DDPM, 2020, eq. 14).
    """
    ids, condition = batch["id"], model.encode(model.condition(batch))
    x0 = model.latents(batch, randomness)
    noise = randomness.child("noise").normal(ids, tuple(x0.shape[1:]), x0.dtype)
    images, times = [], model.times(STEPS)
    for share in SHARES:
        first = int((times > share * model.timesteps).sum())  # the first step at or below the noise level
        x = model.noised(x0, noise, times[first].expand(len(ids)))
        for _, after in model.trajectory(x, condition, guidance=1.0, steps=STEPS, first=first):
            x = after
        images.append(model.images(x))
    losses = []
    for number in range(TIMES):
        t = torch.full_like(ids, (2 * number + 1) * model.timesteps // (2 * TIMES))
        own = randomness.child("loss").at(number).normal(ids, tuple(x0.shape[1:]), x0.dtype)
        found = model.predict(model.noised(x0, own, t), t, condition)
        losses.append((found - own).square().flatten(1).mean(dim=1))
    levels = tuple(f"{share:.0%} of the noise" for share in SHARES)
    return Recalled(torch.stack(images), torch.stack(losses).mean(dim=0), levels)
