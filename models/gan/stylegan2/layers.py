"""The layers of StyleGAN2: equalised learning rate, modulated convolution, filtered up- and downsampling."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Of the leaky rectifier on its negative side."""

GAIN = math.sqrt(2)
"""Of the leaky rectifier, so that the variance of standard normal inputs is about kept (He et al. 2015)."""

FILTER = (1, 3, 3, 1)
"""The binomial filter of every up- and downsampling, unnormalised (Karras et al., StyleGAN, 2019, section 2)."""

EPSILON = 1e-8

Activation = Literal["linear", "lrelu"]


def binomial_filter(taps: Sequence[int] = FILTER) -> Tensor:
    """Return the outer product of the taps with themselves, (T, T), of sum 1."""
    row = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(row, row) / row.sum() ** 2


def filtered(x: Tensor, kernel: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    """Convolve each channel with a filter and keep every ``stride``-th value.

    Args:
        x: (B, C, H, W).
        kernel: (T, T).
        padding: zeros around x.
        stride: 2 halves the sides.
        gain: factor of the result.

    Returns:
        (B, C, (H + 2 padding - T) // stride + 1, ...).
    """
    # conv2d correlates; flipping the kernel makes it a convolution
    weight = (kernel.flip(0, 1) * gain).to(x.dtype).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])


def upsampled(x: Tensor, kernel: Tensor) -> Tensor:
    """Double the sides of x (B, C, H, W): a zero after every value in both directions, and a kernel (4, 4) of sum 1."""
    # three of four values are zeros after the insertion, hence the gain of 4, which keeps the mean
    weight = (kernel * 4).to(x.dtype).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def clamped(x: Tensor, bound: float | None) -> Tensor:
    """Bound the magnitude, None for no bound; 256 for mixed precision (Karras et al., ADA, 2020, arXiv:2006.06676)."""
    return x if bound is None else x.clamp(-bound, bound)


def rectified(x: Tensor, bound: float | None = None) -> Tensor:
    """Apply the rectifier to x that has its gain already (a positive factor may come before or after), and clamp."""
    return clamped(F.leaky_relu(x, SLOPE), bound)


def exact(x: Tensor) -> Tensor:
    """Return x in single precision or better."""
    return x if x.dtype == torch.float64 else x.float()


def normalised(x: Tensor) -> Tensor:
    """Return rows (B, D) divided by the root of their mean square."""
    return x * (x.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()


class Linear(nn.Module):
    """A linear layer with equalised learning rate: weights of variance 1, scaled as they are used.

    Args:
        inputs: D.
        outputs: E.
        activation: what follows.
        bias: first value of the bias.
        lr: factor of the learning rate: the weights start at 1 / lr times the size and are used lr times as large.

    Reference:
        Karras et al., Progressive Growing of GANs, 2018, section 4.1. arXiv:1710.10196
    """

    def __init__(
        self, inputs: int, outputs: int, activation: Activation = "linear", bias: float = 0.0, lr: float = 1.0
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.lr = lr
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)
        self.bias = nn.Parameter(torch.full((outputs,), bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D) to (B, E)."""
        # He's constant 1 / sqrt(fan-in) is applied here, not at initialisation: all weights then have the same range,
        # and Adam, whose steps do not depend on the size of the gradient, trains all layers at the same relative rate
        scale = self.lr / math.sqrt(self.weight.shape[1])
        x = F.linear(x, self.weight * scale, self.bias * self.lr)
        return rectified(x * GAIN) if self.activation == "lrelu" else x


class Conv(nn.Module):
    """A convolution with equalised learning rate, as the discriminator has it.

    Args:
        inputs: C.
        outputs: D.
        size: of the kernel, odd.
        activation: what follows.
        bias: whether there is one.
        down: filter first, and halve the sides.
        clamp: see ``clamped``.
    """

    bias: nn.Parameter | None
    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        activation: Activation = "linear",
        bias: bool = True,
        down: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.down, self.clamp = down, clamp
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)
        self.register_buffer("resample_filter", binomial_filter())

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Map (B, C, H, W) to (B, D, H, W), or half the sides; ``gain`` is that of the result."""
        size = self.weight.shape[-1]
        factor = gain * (GAIN if self.activation == "lrelu" else 1.0)  # on small tensors, before the convolution
        weight = self.weight * (factor / math.sqrt(self.weight[0].numel()))
        bias = None if self.bias is None else self.bias * factor
        if not self.down:
            x = F.conv2d(x, weight, bias, padding=size // 2)
        elif size == 1:  # the filtered values that are left out need not be computed
            x = F.conv2d(filtered(x, self.resample_filter, 1, stride=2), weight, bias)
        else:
            x = F.conv2d(filtered(x, self.resample_filter, 1 + size // 2), weight, bias, stride=2)
        bound = None if self.clamp is None else self.clamp * gain
        return rectified(x, bound) if self.activation == "lrelu" else clamped(x, bound)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return 1 / sqrt(sum over inputs and kernel of (s_i w_ijk)^2 + 1e-8), (B, D), in single precision or better.

    Karras et al., StyleGAN2, 2020, eq. 3. The sum over the kernel does not depend on the item, so it is taken first.

    Args:
        weight: (D, C, k, k).
        styles: (B, C).
    """
    # for independent inputs of variance 1 the output then has variance 1 as well
    with torch.autocast(weight.device.type, enabled=False):
        weight, styles = exact(weight), exact(styles)
        return (styles.square() @ weight.square().sum(dim=(2, 3)).T + EPSILON).rsqrt()


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulate: bool = True,
    up: Tensor | None = None,
    fused: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Convolve each item with weights scaled by its own styles (StyleGAN2, eqs. 1 and 3).

    Scaling the weights' inputs is scaling the inputs, and scaling their outputs is scaling the outputs, so that one
    convolution serves all items (un-fused). ``fused`` scales the weights instead, and takes a convolution with one
    group per item: less memory traffic on a GPU, slower on a CPU.

    Args:
        x: (B, C, H, W).
        weight: (D, C, k, k), k odd.
        styles: (B, C).
        demodulate: whether to divide by the norm of each output's scaled weights.
        up: filter (4, 4) of sum 1 with which to double the sides, None for none.
        fused: scale the weights, not the inputs and outputs.
        gain: factor of the result.

    Returns:
        (B, D, H, W), or of twice the sides.
    """
    if x.dtype == torch.float16 and demodulate:  # cancels in the demodulation, and keeps the products in range
        weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel()))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    if demodulate:
        scale = demodulation(weight, styles) * gain
    else:
        scale, styles = None, styles * gain
    if not fused:
        out = _convolved(x * styles.to(x.dtype)[:, :, None, None], weight.to(x.dtype), up)
        return out if scale is None else out * scale.to(out.dtype)[:, :, None, None]
    batch, _, height, width = x.shape
    # items become groups of one convolution: (1, B C, H, W) with (B D, C, k, k)
    own = weight * styles[:, None, :, None, None].to(weight.dtype)  # (B, D, C, k, k)
    if scale is not None:
        own = own * scale.to(weight.dtype)[:, :, None, None, None]
    out = _convolved(x.reshape(1, -1, height, width), own.flatten(0, 1).to(x.dtype), up, groups=batch)
    return out.reshape(batch, -1, *out.shape[2:])


def _convolved(x: Tensor, weight: Tensor, up: Tensor | None, groups: int = 1) -> Tensor:
    """Convolve (B, G C, H, W) with (G D, C, k, k) in G groups; where ``up``, zero-insert before and filter after."""
    padding = weight.shape[-1] // 2
    if up is None:
        return F.conv2d(x, weight, padding=padding, groups=groups)
    across = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # (G C, D, k, k)
    spread = F.conv_transpose2d(x, across, stride=2, groups=groups)  # 2 H + k - 2: the last zero is not written
    return filtered(spread, up, 2 - padding, gain=4)
