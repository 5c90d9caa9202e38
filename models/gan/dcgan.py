"""The DCGAN generator, whose z is its own latent."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from unlearn.models.gan.stylegan2.generator import Noise


class DCGAN(nn.Module):
    """Five transposed convolutions from a latent to an image of 64 pixels.

    Args:
        z_dim: values of z.
        width: channels of the last features.
        channels: of the images.

    Attributes:
        num_ws: number of layers that take a latent: only the first.
        w_avg: mean of z, (z_dim,).
        image_shape: (C, H, W).

    Reference:
        Radford et al., Unsupervised Representation Learning with DCGANs, 2016. arXiv:1511.06434
    """

    num_ws = 1
    w_avg: Tensor

    def __init__(self, z_dim: int = 100, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        self.z_dim, self.width, self.channels = z_dim, width, channels
        self.image_shape = (channels, 64, 64)
        layers: list[nn.Module] = []
        widths = [z_dim, *(width * 2**power for power in (3, 2, 1, 0)), channels]
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            stride, padding = (2, 1) if index else (1, 0)  # 1 pixel to 4, then twice the sides each: 64
            layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if index < 4 else [nn.Tanh()]
        self.main = nn.Sequential(*layers)
        self.register_buffer("w_avg", torch.zeros(z_dim), persistent=False)

    def mapping(self, z: Tensor) -> Tensor:
        """Return z, which is its own w."""
        return z

    def synthesis(self, ws: Tensor, noise: Noise = None) -> tuple[Tensor, Tensor]:
        """Return images (B, C, 64, 64) in [-1, 1] and the last features (B, width, 32, 32); it has no noise."""
        features = self.main[:-2](ws[:, 0, :, None, None])
        return cast(Tensor, self.main[-2:](features)), features

    def noise_sides(self) -> list[int]:
        """Return nothing: it has no noise."""
        return []
