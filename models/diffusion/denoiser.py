"""The networks of diffusers that predict, called in one way."""

from collections.abc import Sequence
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from unlearn.models.conditioning import Condition

Denoiser = UNet2DConditionModel | UNet2DModel | DiTTransformer2DModel


def call_denoiser(network: Denoiser, x: Tensor, t: Tensor, condition: Condition, sides: Sequence[int]) -> Tensor:
    """Return what a network predicts of x_t, (B, C, H, W).

    Args:
        network: predicts the noise, the clean image or the velocity.
        x: x_t, (B, C, H, W).
        t: timesteps, (B,) int64.
        condition: B encoded conditions.
        sides: (height, width) of the images in pixels, which SDXL is conditioned on.
    """
    call: Any = network  # diffusers does not type its calls
    added = None
    if condition.pooled is not None:
        height, width = sides
        # original size, crop corner and target size (Podell et al., SDXL, 2023, section 2.2): whole, uncropped images
        times = x.new_tensor([height, width, 0, 0, height, width]).expand(len(x), 6)
        added = {"text_embeds": condition.pooled, "time_ids": times}
    if isinstance(network, UNet2DConditionModel):
        found: Tensor = call(x, t, condition.states, added_cond_kwargs=added, return_dict=False)[0]
    else:
        found = call(x, timestep=t, class_labels=condition.classes, return_dict=False)[0]
    return found[:, : x.shape[1]]  # DiT predicts a variance too
