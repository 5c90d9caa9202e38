"""The discriminator of StyleGAN2: residual levels, and the spread of the minibatch at the last."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from unlearn.models.gan.stylegan2.generator import Shape
from unlearn.models.gan.stylegan2.layers import EPSILON, Conv, Linear, binomial_filter, exact


def with_spread(x: Tensor, group: int) -> Tensor:
    """Append, as one more channel, the mean standard deviation over groups of items.

    Items i, i + n, i + 2n, ... form a group, n the number of groups; where ``group`` does not divide the batch, groups
    are of the largest size below that does.

    Args:
        x: (B, C, H, W).
        group: items per group.

    Returns:
        (B, C + 1, H, W).

    Reference:
        Karras et al., Progressive Growing of GANs, 2018, section 3. arXiv:1710.10196
    """
    size = next(n for n in range(min(group, len(x)), 0, -1) if len(x) % n == 0)
    rows = exact(x.reshape(size, -1, *x.shape[1:]))  # (items of a group, groups, C, H, W)
    deviation = (rows.var(dim=0, correction=0) + EPSILON).sqrt().mean(dim=(1, 2, 3))  # one per group
    channel = deviation.to(x.dtype).repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, channel], dim=1)


class ResidualLevel(nn.Module):
    """Two convolutions that halve the sides, plus a linear skip path; each has half the variance in the sum.

    Args:
        shape: of the generator.
        side: of what comes in, in pixels.
    """

    resample_filter: Tensor

    def __init__(self, shape: Shape, side: int) -> None:
        super().__init__()
        inputs, outputs, clamp = shape.width(side), shape.width(side // 2), shape.clamp
        self.first = side == shape.size
        if self.first:
            self.fromrgb = Conv(shape.channels, inputs, 1, "lrelu", clamp=clamp)
        self.conv0 = Conv(inputs, inputs, 3, "lrelu", clamp=clamp)
        self.conv1 = Conv(inputs, outputs, 3, "lrelu", down=True, clamp=clamp)
        self.skip = Conv(inputs, outputs, 1, bias=False, down=True)
        self.register_buffer("resample_filter", binomial_filter())  # of other architectures; in every public file

    def forward(self, x: Tensor) -> Tensor:
        """Map an image or features (B, C, side, side) to (B, D, side / 2, side / 2)."""
        if self.first:
            x = self.fromrgb(x)
        straight: Tensor = self.skip(x, gain=math.sqrt(0.5))
        crooked: Tensor = self.conv1(self.conv0(x), gain=math.sqrt(0.5))
        return straight + crooked


class LastLevel(nn.Module):
    """From features of 4 pixels to one number.

    Args:
        shape: of the generator.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width(4)
        self.group = shape.group
        self.conv = Conv(width + 1, width, 3, "lrelu", clamp=shape.clamp)
        self.fc = Linear(width * 16, width, "lrelu")
        self.out = Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, 4, 4) to (B, 1)."""
        return cast(Tensor, self.out(self.fc(self.conv(with_spread(exact(x), self.group)).flatten(1))))


class Discriminator(nn.Module):
    """A StyleGAN2 discriminator with the public state-dict names.

    Args:
        shape: of the generator.

    Reference:
        Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020, section 4.1. arXiv:1912.04958
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        for side in reversed(shape.sides[1:]):
            self.add_module(f"b{side}", ResidualLevel(shape, side))
        self.b4 = LastLevel(shape)

    def forward(self, images: Tensor) -> Tensor:
        """Return how real images (B, channels, size, size) in [-1, 1] look, (B,), as a logit."""
        x = images
        for level in self.children():  # the largest first
            x = level(x)
        return x.squeeze(1)
