"""Each layer of StyleGAN2 against its formula, computed the slow way."""

import math

import pytest
import torch
from torch import Tensor

from unlearn.models.gan.stylegan2.discriminator import with_spread
from unlearn.models.gan.stylegan2.layers import (
    Conv,
    Linear,
    binomial_filter,
    clamped,
    demodulation,
    filtered,
    modulated_conv,
    normalised,
    rectified,
    upsampled,
)

DRAW = torch.Generator().manual_seed(0)
UNEVEN = torch.tensor([[1.0, 2, 3, 4], [0, 1, 5, 2], [2, 2, 1, 0], [1, 0, 0, 7]], dtype=torch.float64) / 31
"""A filter without symmetry, of sum 1, so that a flip is seen."""


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=DRAW, dtype=torch.float64)


def convolved(x: Tensor, kernel: Tensor, before: int, after: int) -> Tensor:
    """Convolve (as mathematics has it) each channel of x, with zeros around it; by four loops."""
    padded = torch.nn.functional.pad(x, (before, after, before, after))
    taps = len(kernel)
    side = padded.shape[-1] - taps + 1
    out = x.new_zeros(*x.shape[:2], side, side)
    for i in range(side):
        for j in range(side):
            for k in range(taps):
                for m in range(taps):
                    out[:, :, i, j] += kernel[taps - 1 - k, taps - 1 - m] * padded[:, :, i + k, j + m]
    return out


def zero_inserted(x: Tensor) -> Tensor:
    """Put a zero after every value in both directions."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def test_the_filter_is_binomial() -> None:
    """By hand: (1, 3, 3, 1) x (1, 3, 3, 1) / 64."""
    row = [1.0, 3, 3, 1]
    torch.testing.assert_close(binomial_filter(), torch.tensor([[a * b / 64 for b in row] for a in row]))


@pytest.mark.parametrize("kernel", [binomial_filter().double(), UNEVEN])
def test_upsampling_inserts_zeros_and_filters(kernel: Tensor) -> None:
    x = draw(2, 3, 5, 5)
    found = upsampled(x, kernel)
    torch.testing.assert_close(found, 4 * convolved(zero_inserted(x), kernel, 2, 1))
    wrong = 4 * convolved(zero_inserted(x), kernel, 1, 2)  # the control: shifted by a pixel
    assert (found - wrong).abs().max() > 0.1


@pytest.mark.parametrize("kernel", [binomial_filter().double(), UNEVEN])
def test_downsampling_filters_and_keeps_every_second(kernel: Tensor) -> None:
    x = draw(2, 3, 6, 6)
    torch.testing.assert_close(filtered(x, kernel, 1, stride=2), convolved(x, kernel, 1, 1)[:, :, ::2, ::2])
    torch.testing.assert_close(filtered(x, kernel, 2), convolved(x, kernel, 2, 2))


def test_resampling_keeps_a_constant_image() -> None:
    """Away from the border, where zeros come in: the gains are right."""
    x = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(upsampled(x, binomial_filter())[..., 2:-2, 2:-2], torch.full((1, 1, 12, 12), 0.7))
    halved = filtered(x, binomial_filter(), 1, stride=2)
    torch.testing.assert_close(halved[..., 1:-1, 1:-1], torch.full((1, 1, 2, 2), 0.7))


def test_the_rectifier_keeps_its_gain() -> None:
    """By hand: 2 -> 2 sqrt(2); -2 -> -.4 sqrt(2); clamping bounds both signs."""
    x = torch.tensor([2.0, -2.0, 400.0, -4000.0])
    root = math.sqrt(2)
    torch.testing.assert_close(rectified(x * root), torch.tensor([2 * root, -0.4 * root, 400 * root, -800 * root]))
    torch.testing.assert_close(rectified(x * root, 256), torch.tensor([2 * root, -0.4 * root, 256, -256]))
    torch.testing.assert_close(clamped(x, 128), torch.tensor([2.0, -2, 128, -128]))
    assert clamped(x, None) is x


def test_the_rectifiers_gain_of_sqrt_2_nearly_keeps_the_power_of_normal_inputs() -> None:
    """E[f(x)^2] = 2 (1 + .2^2) / 2 = 1.04."""
    x = draw(200_000)
    assert abs(rectified(x * math.sqrt(2)).square().mean().item() - 1.04) < 0.01


def test_linear_layers_have_an_equalised_learning_rate() -> None:
    """y = W x lr / sqrt(D) + b lr, with weights that start at variance 1 / lr^2."""
    layer = Linear(256, 200, lr=0.01, bias=1.0)
    assert abs(layer.weight.std().item() * 0.01 - 1) < 0.02
    x = draw(4, 256).float()
    wanted = x @ layer.weight.T * 0.01 / 16 + 0.01
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    assert abs(layer(x).std().item() - 1) < 0.1
    (gradient,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    plain = Linear(256, 200)
    (unscaled,) = torch.autograd.grad(plain(x).sum(), plain.weight)
    torch.testing.assert_close(gradient, unscaled * 0.01)


@pytest.mark.parametrize("size", [1, 3])
def test_convolutions_have_an_equalised_learning_rate(size: int) -> None:
    layer = Conv(6, 5, size, "lrelu").double()
    torch.nn.init.normal_(layer.bias)
    x = draw(2, 6, 4, 4)
    scaled = layer.weight / math.sqrt(6 * size * size)
    wanted = torch.nn.functional.conv2d(x, scaled, layer.bias, padding=size // 2)
    torch.testing.assert_close(layer(x, gain=0.5), rectified(wanted * math.sqrt(2)) * 0.5)
    layer.clamp = 0.1  # a further gain scales the bound too
    torch.testing.assert_close(layer(x, gain=0.5), rectified(wanted * math.sqrt(2), 0.1) * 0.5)


@pytest.mark.parametrize("size", [1, 3])
def test_downsampling_convolutions_filter_first(size: int) -> None:
    """Filter with pad 2 (or 1), then the plain convolution at every second pixel."""
    layer = Conv(3, 4, size, bias=False, down=True).double()
    layer.resample_filter.copy_(UNEVEN)
    x = draw(2, 3, 8, 8)
    smooth = convolved(x, UNEVEN, 1 + size // 2, 1 + size // 2)
    every = torch.nn.functional.conv2d(smooth, layer.weight / math.sqrt(3 * size * size))
    torch.testing.assert_close(layer(x), every[:, :, ::2, ::2])
    assert layer(x).shape == (2, 4, 4, 4)


def test_rows_are_divided_by_the_root_of_their_mean_square() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(normalised(x), torch.tensor([[3.0, 4.0], [0.0, 0.0]]) / math.sqrt(12.5))


def naive(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool, up: Tensor | None) -> Tensor:
    """One item at a time: scale, normalise and convolve with the item's own weights; up by zeros and a filter."""
    out = []
    for item, style in zip(x, styles, strict=True):
        own = weight * style[None, :, None, None]
        if demodulate:
            for index in range(len(own)):
                own[index] = own[index] / math.sqrt(float((own[index] ** 2).sum()) + 1e-8)
        if up is None:
            out.append(torch.nn.functional.conv2d(item[None], own, padding=own.shape[-1] // 2))
            continue
        spread = zero_inserted(item[None])
        side, pad = spread.shape[-1] + own.shape[-1] - 2, own.shape[-1] - 1
        padded = torch.nn.functional.pad(spread, (pad, pad, pad, pad))
        every = torch.nn.functional.conv2d(padded, own.flip(2, 3))[:, :, :side, :side]  # a convolution, not flipped
        out.append(4 * convolved(every, up, 2 - own.shape[-1] // 2, 2 - own.shape[-1] // 2))
    return torch.cat(out)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("up", [None, binomial_filter().double(), UNEVEN])
@pytest.mark.parametrize("size", [1, 3])
def test_modulation_is_that_of_one_item_at_a_time(fused: bool, demodulate: bool, up: Tensor | None, size: int) -> None:
    x, weight, styles = draw(3, 4, 5, 5), draw(6, 4, size, size), 1 + draw(3, 4)
    found = modulated_conv(x, weight, styles, demodulate, up, fused)
    torch.testing.assert_close(found, naive(x, weight.clone(), styles, demodulate, up), rtol=1e-6, atol=1e-6)
    other = modulated_conv(x, weight, styles.roll(1, 0), demodulate, up, fused)
    assert (found - other).abs().max() > 0.1  # the control: another item's styles


def test_fused_is_unfused_in_single_precision() -> None:
    x, weight, styles = draw(3, 32, 8, 8).float(), draw(32, 32, 3, 3).float(), (1 + draw(3, 32)).float()
    for up in (None, binomial_filter()):
        plain = modulated_conv(x, weight, styles, up=up)
        assert (plain - modulated_conv(x, weight, styles, up=up, fused=True)).abs().max() < 1e-5


def test_demodulation_gives_outputs_of_variance_1() -> None:
    """Of standard normal inputs, whatever the styles."""
    styles = torch.tensor([[5.0] * 16, [0.01] * 16])
    out = modulated_conv(draw(2, 16, 32, 32).float(), draw(16, 16, 3, 3).float(), styles)
    assert ((out.flatten(1).std(dim=1) - 1).abs() < 0.05).all()
    assert demodulation(draw(16, 16, 3, 3).float(), styles).shape == (2, 16)


def test_half_precision_does_not_overflow() -> None:
    """Styles of 3000 and inputs of 60 exceed the largest half, 65504, in a plain product of 64 channels."""
    x, weight, styles = 60 * torch.ones(1, 64, 4, 4), torch.ones(8, 64, 3, 3), torch.full((1, 64), 3000.0)
    found = modulated_conv(x.half(), weight, styles)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.float(), modulated_conv(x, weight, styles), rtol=2e-3, atol=0.1)
    assert not torch.isfinite((x * styles[:, :, None, None]).half()).all()


def test_the_spread_of_the_minibatch_by_hand() -> None:
    """Four items of one pixel in groups of two: items 0 and 2, 1 and 3.

    Channel values 1 and 5 deviate by 2 from their mean, 2 and 2 by 0: a mean of 1. Then 0 and 4, 0 and 8: 2 and 4.
    """
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 2.0], [4.0, 8.0]])[:, :, None, None]
    found = with_spread(x, 2)
    assert found.shape == (4, 3, 1, 1) and torch.equal(found[:, :2], x)
    torch.testing.assert_close(found[:, 2, 0, 0], torch.tensor([1.0, 3.0, 1.0, 3.0]), rtol=0, atol=1e-4)


def test_groups_are_no_larger_than_divide_the_batch() -> None:
    x = draw(6, 2, 3, 3)
    torch.testing.assert_close(with_spread(x, 4), with_spread(x, 3))
    alone = with_spread(x[:1], 4)[:, 2]
    torch.testing.assert_close(alone, torch.full_like(alone, 1e-4))  # sqrt(1e-8): an item does not differ from itself
    assert not torch.equal(with_spread(x, 2), with_spread(x, 3))


def test_every_layer_has_second_derivatives() -> None:
    """Checked against differences of the first, for inputs, weights and styles."""
    x, weight, styles = (t.requires_grad_() for t in (draw(2, 2, 4, 4), draw(2, 2, 3, 3), 1 + draw(2, 2)))
    for up in (None, UNEVEN):
        for fused in (False, True):

            def conv(a: Tensor, b: Tensor, c: Tensor, up=up, fused=fused) -> Tensor:
                return modulated_conv(a, b, c, up=up, fused=fused)[..., :2, :2].square()

            assert torch.autograd.gradgradcheck(conv, (x, weight, styles), fast_mode=True)
    spread = draw(4, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a: with_spread(a, 2)[:, 2], (spread,), fast_mode=True)
