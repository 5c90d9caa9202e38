"""The autoencoder of a latent diffusion model: the sizes and the scale of its latents."""

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError


def latent_shape(vae: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (C, H, W) of what the denoiser takes for images of a shape; without an autoencoder it is that shape."""
    if vae is None:
        return shape
    factor = shrinking(vae)
    return (vae.config.latent_channels, shape[1] // factor, shape[2] // factor)


def shrinking(vae: Any) -> int:
    """Return by how much an autoencoder divides the sides of images: every level of it but the last halves them."""
    return 2 ** (len(vae.config.block_out_channels) - 1)  # type: ignore[no-any-return]


def to_latents(vae: Any, encoded: Tensor) -> Tensor:
    """Return what the denoiser works on, of what the autoencoder makes of images, both (B, C, H, W)."""
    mean, scale = _mean_and_scale(vae, encoded)
    return (encoded - mean) * scale


def from_latents(vae: Any, latents: Tensor) -> Tensor:
    """Return what the autoencoder decodes, the inverse of ``to_latents``."""
    mean, scale = _mean_and_scale(vae, latents)
    return latents / scale + mean


def _mean_and_scale(vae: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    config = vae.config
    if config.latents_mean is None:
        return 0.0, config.scaling_factor
    mean, deviation = (
        torch.tensor(each, device=like.device, dtype=like.dtype)[:, None, None]
        for each in (config.latents_mean, config.latents_std)
    )
    return mean, config.scaling_factor / deviation


def check_vae(vae: Any, statistics: bool, folder: Path) -> None:
    """Refuse an autoencoder whose configuration has numbers that are not used here.

    Args:
        vae: AutoencoderKL.
        statistics: whether the pipeline uses ``latents_mean`` and ``latents_std``.
        folder: of the autoencoder.
    """
    config = vae.config
    known = {*inspect.signature(type(vae).__init__).parameters}
    unused = {key: value for key, value in config.items() if key not in known and key[0] != "_" and _is_number(value)}
    unused |= {"shift_factor": config.shift_factor} if config.shift_factor else {}
    stated = {key: config[key] for key in ("latents_mean", "latents_std") if config[key] is not None}
    if not statistics:
        unused |= stated
    if unused:
        what = ", ".join(f"{key}={str(value)[:100]}" for key, value in unused.items())
        raise RecipeError(
            f"{folder}: the autoencoder has {what}, which this pipeline does not use, so its latents would be wrong. "
            "Type a pipeline whose autoencoder has a scaling_factor alone."
        )
    several = isinstance(config.scaling_factor, list | tuple)
    if several or not _is_number(config.scaling_factor) or not 0 < config.scaling_factor < math.inf:
        raise RecipeError(f"{folder}: scaling_factor is {config.scaling_factor!r}; it must be a number above 0.")
    if (
        stated
        and [len(value) for value in stated.values() if isinstance(value, list | tuple)] != [config.latent_channels] * 2
    ):
        raise RecipeError(
            f"{folder}: latents_mean and latents_std must both have a number for each of the {config.latent_channels} "
            "latent channels. Mend config.json."
        )


def _is_number(value: object) -> bool:
    values = value if isinstance(value, list | tuple) and value else [value]
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
