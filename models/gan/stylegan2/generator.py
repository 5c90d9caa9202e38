"""The generator of StyleGAN2: a mapping network from z to w, and a synthesis network from w to images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from unlearn.core.validation import PositiveFloat, PositiveInt, check_ranges
from unlearn.models.gan.stylegan2.layers import (
    GAIN,
    Linear,
    binomial_filter,
    clamped,
    exact,
    modulated_conv,
    normalised,
    rectified,
    upsampled,
)

Noise = Sequence[Tensor] | None
"""What a synthesis network adds: one tensor (B, 1, r, r) per layer; None for the layers' own constant noise."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a generator and its discriminator.

    Args:
        size: side of the images in pixels, a power of 2, at least 8.
        channels: of the images.
        z_dim: values of z.
        w_dim: values of w.
        layers: of the mapping network.
        mapping_lr: factor of its learning rate.
        channel_base: a level of r pixels has channel_base / r channels, and at most ``channel_max``.
        channel_max: most channels of a level.
        clamp: bound of the output of every convolution, for half precision; None for none.
        group: number of items whose spread the discriminator's last level sees.
    """

    size: int
    channels: PositiveInt = 3
    z_dim: PositiveInt = 512
    w_dim: PositiveInt = 512
    layers: PositiveInt = 8
    mapping_lr: PositiveFloat = 0.01
    channel_base: PositiveInt = 32768
    channel_max: PositiveInt = 512
    clamp: PositiveFloat | None = None
    group: PositiveInt = 4

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; it must be a power of 2, at least 8")
        check_ranges(self)

    @property
    def sides(self) -> list[int]:
        """Sides of the levels in pixels, from 4 to ``size``."""
        return [2**power for power in range(2, int(math.log2(self.size)) + 1)]

    @property
    def num_ws(self) -> int:
        """Number of layers that take a w: two per level."""
        return 2 * len(self.sides)

    def width(self, side: int) -> int:
        """Return the channels of a level."""
        return max(1, min(self.channel_base // side, self.channel_max))


class Mapping(nn.Module):
    """From z to w by fully connected layers on the normalised z.

    Args:
        shape: of the generator.

    Attributes:
        w_avg: mean of w, (w_dim,).
    """

    w_avg: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        for index in range(shape.layers):
            inputs = shape.w_dim if index else shape.z_dim
            self.add_module(f"fc{index}", Linear(inputs, shape.w_dim, "lrelu", lr=shape.mapping_lr))
        self.register_buffer("w_avg", torch.zeros(shape.w_dim))

    def forward(self, z: Tensor) -> Tensor:
        """Map z (B, z_dim) to w (B, w_dim)."""
        x = normalised(exact(z))
        for layer in self.children():
            x = layer(x)
        return x


class StyledConv(nn.Module):
    """A modulated convolution, noise, and the rectifier.

    Args:
        inputs: C.
        outputs: D.
        w_dim: values of w.
        side: of the output in pixels.
        up: double the sides.
        clamp: see Shape.
    """

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, w_dim: int, side: int, up: bool, clamp: float | None) -> None:
        super().__init__()
        self.up, self.clamp = up, clamp
        self.affine = Linear(w_dim, inputs, bias=1.0)  # styles begin around 1
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))  # noise is learnt, and absent at first
        self.register_buffer("noise_const", torch.randn(side, side))
        self.register_buffer("resample_filter", binomial_filter())

    def forward(self, x: Tensor, w: Tensor, noise: Tensor, fused: bool) -> Tensor:
        """Map x (B, C, H, W) to (B, D, side, side) given w (B, w_dim); noise of shape (side, side) or one per item."""
        # the leaky rectifier r is positively homogeneous: g r(a + b) = r(g a + g b), so the gain goes to each summand
        up = self.resample_filter if self.up else None
        x = modulated_conv(x, self.weight, self.affine(w), up=up, fused=fused, gain=GAIN)
        x = x + (noise * (self.noise_strength * GAIN)).to(x.dtype)
        return rectified(x + (self.bias * GAIN).to(x.dtype)[:, None, None], self.clamp)


class ToRGB(nn.Module):
    """From features to an image: a modulated 1 x 1 convolution without demodulation.

    Args:
        inputs: C.
        channels: of the image.
        w_dim: values of w.
        clamp: see Shape.
    """

    def __init__(self, inputs: int, channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = Linear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor, fused: bool) -> Tensor:
        """Map x (B, C, H, W) to (B, channels, H, W) given w (B, w_dim)."""
        # without demodulation nothing cancels the weight's scale, so the equalised learning rate is in the styles
        styles = self.affine(w) / math.sqrt(self.weight[0].numel())
        x = modulated_conv(x, self.weight, styles, demodulate=False, fused=fused)
        return clamped(x + self.bias.to(x.dtype)[:, None, None], self.clamp)


class Level(nn.Module):
    """One level of the synthesis network: twice the sides, two convolutions, and a share of the image.

    Args:
        shape: of the generator.
        side: of the level in pixels.
    """

    resample_filter: Tensor

    def __init__(self, shape: Shape, side: int) -> None:
        super().__init__()
        width, w_dim, clamp = shape.width(side), shape.w_dim, shape.clamp
        self.first = side == 4
        if self.first:
            self.const = nn.Parameter(torch.randn(width, side, side))
        else:
            self.conv0 = StyledConv(shape.width(side // 2), width, w_dim, side, True, clamp)
        self.conv1 = StyledConv(width, width, w_dim, side, False, clamp)
        self.torgb = ToRGB(width, shape.channels, w_dim, clamp)
        self.register_buffer("resample_filter", binomial_filter())

    def convs(self) -> list[StyledConv]:
        """Return the layers that take noise."""
        return [self.conv1] if self.first else [self.conv0, self.conv1]

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, noise: Sequence[Tensor], fused: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the features (B, C, side, side) and the image so far, in single precision or better.

        Args:
            x: features of the level before, None in the first.
            image: of the level before, None in the first.
            ws: one w per layer, the last of them for the image, (B, 2 or 3, w_dim).
            noise: one per convolution.
            fused: see ``modulated_conv``.
        """
        if x is None:
            x = self.const.to(ws.dtype).expand(len(ws), -1, -1, -1)
            if not (fused or ws.is_cuda):  # a convolution on a CPU is faster with channels last, and hands that on
                x = x.contiguous(memory_format=torch.channels_last)
        for index, conv in enumerate(self.convs()):
            x = conv(x, ws[:, index], noise[index], fused)
        share = exact(self.torgb(x, ws[:, -1], fused))
        if image is None:
            return x, share
        with torch.autocast(share.device.type, enabled=False):
            return x, upsampled(image, self.resample_filter) + share


class Synthesis(nn.Module):
    """From w to images: levels from 4 pixels up, whose shares of the image are added (output skips).

    Args:
        shape: of the generator.

    Attributes:
        fused: see ``modulated_conv``; None fuses on a GPU, and where there is one item.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fused: bool | None = None
        for side in shape.sides:
            self.add_module(f"b{side}", Level(shape, side))

    def levels(self) -> Iterator[Level]:
        """Yield the levels, the smallest first."""
        yield from cast(Iterator[Level], self.children())

    def forward(self, ws: Tensor, noise: Noise = None) -> tuple[Tensor, Tensor]:
        """Return images (B, channels, size, size), about in [-1, 1], and the last features (B, C, size, size).

        Args:
            ws: one w per layer, (B, num_ws, w_dim). A level's last w makes its share of the image, and is also that of
                the first convolution of the next level.
            noise: see Noise.
        """
        fused = ws.is_cuda or len(ws) == 1 if self.fused is None else self.fused
        x: Tensor | None = None
        image: Tensor | None = None
        if noise is None:
            noise = [conv.noise_const for level in self.levels() for conv in level.convs()]
        start = 0
        for level in self.levels():
            end = start + len(level.convs())
            # the ws of two levels overlap by one, their noise does not
            x, image = level(x, image, ws[:, start : end + 1], noise[start:end], fused)
            start = end
        return cast(Tensor, image), cast(Tensor, x)


class Generator(nn.Module):
    """A StyleGAN2 generator, whose state dict has the public names ``mapping.*`` and ``synthesis.*``.

    Args:
        shape: its sizes.

    Attributes:
        z_dim: values of z.
        num_ws: number of layers that take a w.
        image_shape: (C, H, W).

    Reference:
        Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020. arXiv:1912.04958
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.z_dim, self.num_ws = shape, shape.z_dim, shape.num_ws
        self.image_shape = (shape.channels, shape.size, shape.size)
        self.mapping = Mapping(shape)
        self.synthesis = Synthesis(shape)

    @property
    def w_avg(self) -> Tensor:
        """Mean of w, (w_dim,)."""
        return self.mapping.w_avg

    def noise_sides(self) -> list[int]:
        """Return the side of each layer's noise, in their order."""
        return [conv.noise_const.shape[-1] for level in self.synthesis.levels() for conv in level.convs()]

    def forward(self, z: Tensor, noise: Noise = None) -> Tensor:
        """Return the images (B, channels, size, size) of z (B, z_dim)."""
        return cast(Tensor, self.synthesis(self.mapping(z)[:, None].expand(-1, self.num_ws, -1), noise)[0])
