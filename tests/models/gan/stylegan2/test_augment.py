"""Augmentation of what a discriminator sees: each transform in closed form, and how often it applies."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from unlearn.core.randomness import Randomness
from unlearn.models.gan.stylegan2 import augment
from unlearn.models.gan.stylegan2.augment import (
    MEAN,
    SYM6,
    Augment,
    Draws,
    blitted,
    colours,
    copied,
    moved_about,
    recoloured,
    resampled,
    shift,
    stretch,
    turn,
)

STREAM = Randomness(0, "test")
BLIT, GEOMETRY, COLOR = (
    Augment(**{name: name == one for name in ("blit", "geometry", "color")}) for one in ("blit", "geometry", "color")
)


def images(channels: int = 3, count: int = 3, side: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * STREAM.uniform(torch.arange(count), (channels, side, side), dtype) - 1


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_is_changed_at_probability_zero(channels: int, dtype: torch.dtype) -> None:
    """Bit for bit, through every transform; the control has a probability."""
    given, ids = images(channels).to(dtype), torch.arange(3)
    for each in (Augment(), BLIT, GEOMETRY, COLOR):
        seen = each(given, ids, STREAM, 0.0)
        assert torch.equal(seen, given) and seen.dtype == dtype
        assert not torch.equal(each(given, ids, STREAM, 1.0), given)


def test_flips_quarter_turns_and_whole_shifts_copy_pixels() -> None:
    given = images()
    one, none = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    assert torch.equal(copied(given, stretch(-one, one)), given.flip(-1))
    quarters = [(one, none), (none, one), (-one, none), (none, -one)]
    for number, (cosine, sine) in enumerate(quarters):
        assert torch.equal(copied(given, turn(cosine, sine)), given.rot90(number, (-2, -1)))
    by = numbers(2, -1).expand(3, -1)  # two to the right, one up
    continued = F.pad(given, (2, 0, 0, 1), mode="reflect")[..., 1:, :8]
    assert torch.equal(copied(given, shift(-by)), continued)
    assert torch.equal(continued[..., :-1, 2:], given.roll((-1, 2), (-2, -1))[..., :-1, 2:])
    assert not torch.equal(continued, given.roll((-1, 2), (-2, -1)))  # the control: no wrapping round


def test_blits_are_the_same_images_turned_and_shifted_with_even_shares() -> None:
    """8 ways to turn and flip by 9 shifts of at most a pixel (8 pixels / 8), the outer shifts half as often."""
    given = images(1, 1)
    seen = BLIT(given.expand(2000, -1, -1, -1), torch.arange(2000), STREAM, 1.0)
    mirrored = F.pad(given, (1, 1, 1, 1), mode="reflect")
    counts = torch.zeros(8, 3, 3)
    for way in range(8):
        turned = mirrored.flip(-1) if way >= 4 else mirrored
        turned = turned.rot90(way % 4, (-2, -1))
        for row in range(3):
            for column in range(3):
                wanted = turned[..., row : row + 8, column : column + 8]
                counts[way, row, column] = (seen == wanted).all(dim=(1, 2, 3)).sum()
    assert counts.sum() == 2000
    share = numbers(0.25, 0.5, 0.25)
    wanted = (share[:, None] * share / 8).expand(8, 3, 3).float()
    torch.testing.assert_close(counts / 2000, wanted, rtol=0, atol=0.02)


def test_the_filter_is_the_one_of_its_name() -> None:
    """Twelve taps are set by: sum sqrt(2), orthogonal to their even shifts, six vanishing moments (Daubechies)."""
    taps, place = numbers(*SYM6), torch.arange(12, dtype=torch.float64)
    assert math.isclose(taps.sum(), math.sqrt(2), rel_tol=1e-14)
    for by in range(0, 12, 2):
        assert math.isclose((taps[by:] * taps[: 12 - by]).sum(), by == 0, abs_tol=1e-14)
    moments = [((-1) ** place * place**power * taps).sum().item() for power in range(7)]
    assert max(map(abs, moments[:6])) < 1e-9 < 1 < abs(moments[6])  # the control: the next one does not vanish


def ramp(side: int, matrix: Tensor) -> Tensor:
    """3 x - 2 y + 1 at the places to which a matrix (1, 3, 3) takes the pixels, in hundredths; (1, 1, S, S)."""
    along = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    place = matrix[0] @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    return (0.03 * place[0] - 0.02 * place[1] + 0.01).view(1, 1, side, side)


def test_ramps_are_moved_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters with vanishing moments and bilinear lookup keep ramps; away from the mirrored ends there is no error."""
    side, middle = 32, slice(12, 20)
    angle, factor = numbers(0.7), numbers(1.3)
    still = turn(numbers(1), numbers(0))
    moves = [
        turn(angle.cos(), angle.sin()),
        stretch(factor, 1 / factor),
        shift(numbers(1.37, -0.61)[None]),
        turn(angle.cos(), angle.sin()) @ stretch(1 / factor, factor) @ shift(numbers(-0.2, 0.9)[None]),
    ]
    given = ramp(side, still)
    for move in moves:
        found = resampled(given, move)[..., middle, middle]
        torch.testing.assert_close(found, ramp(side, move)[..., middle, middle], rtol=0, atol=1e-12)
        assert (found - given[..., middle, middle]).abs().max() > 1e-3
    monkeypatch.setattr(augment, "MEAN", MEAN + 0.4)  # the control: places off by a fifth of a pixel
    wrong = resampled(given, moves[0])[..., middle, middle]
    assert (wrong - ramp(side, moves[0])[..., middle, middle]).abs().max() > 1e-3


def test_way_there_and_back_cancel_without_a_move() -> None:
    """Of any image, where no tap meets a mirrored end; a move of a tenth of a pixel is the control."""
    given, middle = images(side=32), slice(8, 24)
    still = turn(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    found = resampled(given, still)
    torch.testing.assert_close(found[..., middle, middle], given[..., middle, middle], rtol=0, atol=1e-12)
    other = resampled(given, still @ shift(numbers(0.1, 0).expand(3, -1)))
    assert (other - given)[..., middle, middle].abs().max() > 0.1


def test_the_sizes_of_moves() -> None:
    """At p = 1: log2 of the scale has deviation 0.2, shifts 1/8 of the side; the turns' angles are even."""
    ids = torch.arange(4000)
    matrix = moved_about(Draws(ids, STREAM, 1.0, torch.float64), 16)
    zoom = -torch.linalg.det(matrix[:, :2, :2]).log2() / 2
    torch.testing.assert_close(zoom.std(), numbers(0.2)[0], rtol=0.05, atol=0)
    longest = torch.linalg.svdvals(matrix[:, :2, :2]).log2() + zoom[:, None]
    torch.testing.assert_close(longest.square().mean().sqrt(), numbers(0.2)[0], rtol=0.05, atol=0)
    by = -torch.linalg.solve(matrix[:, :2, :2], matrix[:, :2, 2])
    torch.testing.assert_close(by.std(dim=0), numbers(2, 2), rtol=0.05, atol=0)
    direction = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    assert torch.histc(direction, 4, -math.pi, math.pi).sub(1000).abs().max() < 120


def test_how_often_each_transform_applies() -> None:
    """Each with p, either turn with p together; the control is another p."""
    draws = Draws(torch.arange(4000), STREAM, 0.3, torch.float64)
    for values in (draws.normal("a"), draws.uniform("b"), draws.normal("c", 2)[:, 1]):
        assert abs((values != 0).double().mean() - 0.3) < 0.03
    assert abs((draws.integers("d", 4) != 0).double().mean() - 0.3 * 3 / 4) < 0.03
    matrix = moved_about(draws, 8)
    turned = (matrix[:, 0, 1] != 0) | (matrix[:, 1, 0] != 0)
    assert abs(turned.double().mean() - 0.3) < 0.03
    source = blitted(draws, 8)
    assert abs((torch.linalg.det(source[:, :2, :2]) < 0).double().mean() - 0.15) < 0.03


def test_colours_in_closed_form() -> None:
    """What acts along the grey axis v and across it: contrast c, sign -1, turn by theta, saturation s."""
    one, none = numbers(1), numbers(0)
    v = torch.ones(3, dtype=torch.float64) / math.sqrt(3)
    mirror = colours(one, one, none, one, 3)[0]
    torch.testing.assert_close(mirror, torch.eye(3, dtype=torch.float64) - 2 * torch.outer(v, v))
    torch.testing.assert_close(mirror @ mirror, torch.eye(3, dtype=torch.float64))
    hue = colours(one, none, numbers(2 * math.pi / 3), one, 3)[0]  # a third of a turn takes r to g, g to b, b to r
    torch.testing.assert_close(hue, torch.eye(3, dtype=torch.float64).roll(1, 0))
    hue = colours(one, none, numbers(0.4), one, 3)[0]
    torch.testing.assert_close(hue @ v, v)
    torch.testing.assert_close(hue @ hue.T, torch.eye(3, dtype=torch.float64))
    assert math.isclose(hue.trace(), 1 + 2 * math.cos(0.4))
    grey = colours(one, none, none, none, 3)[0]  # no saturation: the mean of the channels
    torch.testing.assert_close(grey, torch.full((3, 3), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(colours(numbers(1.7), none, none, one, 3)[0], 1.7 * torch.eye(3, dtype=torch.float64))
    assert not torch.allclose(hue, torch.eye(3, dtype=torch.float64))  # the control


def test_the_sizes_of_recolouring() -> None:
    """An even grey g comes out as +-c (g + b), b of deviation 0.2 and log2 c of deviation 0.5, half of them minus."""
    ids = torch.arange(4000)
    draws = Draws(ids, STREAM, 1.0, torch.float64)
    black, white = (recoloured(torch.full((4000, 3, 1, 1), g, dtype=torch.float64), draws) for g in (0.0, 1.0))
    torch.testing.assert_close(white[:, 0], white[:, 2])  # grey stays grey
    factor = (white - black)[:, 0, 0, 0]
    assert abs((factor < 0).double().mean() - 0.5) < 0.03
    torch.testing.assert_close(factor.abs().log2().std(), numbers(0.5)[0], rtol=0.05, atol=0)
    torch.testing.assert_close((black[:, 0, 0, 0] / factor).std(), numbers(0.2)[0], rtol=0.05, atol=0)
    red = torch.tensor([1.0, 0, 0], dtype=torch.float64).view(1, 3, 1, 1).expand(4000, -1, -1, -1)
    across = recoloured(red, draws)[:, :, 0, 0]
    across = (across - across.mean(dim=1, keepdim=True)) / factor[:, None].abs()
    strength = across.norm(dim=1) / math.sqrt(2 / 3)
    torch.testing.assert_close(strength.log2().std(), numbers(1.0)[0], rtol=0.05, atol=0)
    angle = torch.atan2(across @ numbers(0, 1, -1) / math.sqrt(2), across @ numbers(2, -1, -1) / math.sqrt(6))
    assert torch.histc(angle, 4, -math.pi, math.pi).sub(1000).abs().max() < 120


def test_grey_images_are_what_three_equal_channels_become() -> None:
    given, ids = images(1, 20), torch.arange(20)
    for each in (Augment(), COLOR):
        seen = each(given, ids, STREAM, 0.7)
        torch.testing.assert_close(each(given.expand(-1, 3, -1, -1), ids, STREAM, 0.7), seen.expand(-1, 3, -1, -1))
        assert not torch.allclose(seen, given)


@pytest.mark.parametrize("each", [BLIT, GEOMETRY, COLOR])
def test_gradients_reach_the_image_twice(each: Augment) -> None:
    ids, given = torch.arange(2), images(1, 2).requires_grad_()

    def seen(x: Tensor) -> Tensor:
        return each(x, ids, STREAM, 0.9)

    def bent(x: Tensor) -> Tensor:
        return seen(x).pow(3).sum()

    assert not torch.allclose(seen(given), given)
    assert gradcheck(seen, (given,), fast_mode=True)
    assert gradgradcheck(bent, (given,), fast_mode=True)
    (slope,) = torch.autograd.grad(bent(given), given, create_graph=True)
    (again,) = torch.autograd.grad(slope.square().sum(), given)
    assert again.abs().max() > 0


def test_an_image_is_moved_by_its_id_alone() -> None:
    """Ranks and micro-batches that share a batch see what one rank sees; other steps and ids see something else."""
    given, ids, each = images(count=6), torch.arange(6), Augment()
    whole = each(given, ids, STREAM, 0.6)
    parts = torch.cat([each(given[rank::2], ids[rank::2], STREAM, 0.6) for rank in (0, 1)])
    torch.testing.assert_close(parts, whole[[0, 2, 4, 1, 3, 5]], rtol=0, atol=1e-12)
    assert not torch.allclose(each(given, ids + 6, STREAM, 0.6), whole)
    assert not torch.allclose(each(given, ids, STREAM.at(1), 0.6), whole)


def test_places_are_exact_where_steps_are_in_half_precision() -> None:
    given, ids = images(dtype=torch.float32), torch.arange(3)
    wanted = Augment()(given, ids, STREAM, 0.9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Augment()(given, ids, STREAM, 0.9), wanted)
    half = Augment()(given.bfloat16(), ids, STREAM, 0.9)
    assert half.dtype == torch.bfloat16 and not torch.equal(half.float(), wanted)  # the images alone are rounded
    torch.testing.assert_close(half.float(), wanted, rtol=0, atol=0.1)


def test_p_rises_and_falls_by_images_over_speed() -> None:
    each = Augment(target=0.6, speed=1000, limit=0.9)
    assert math.isclose(each.moved(0.2, 0.7, 32), 0.232) and math.isclose(each.moved(0.2, 0.5, 32), 0.168)
    assert each.moved(0.2, 0.6, 32) == 0.2
    assert each.moved(0.01, -1, 32) == 0 and each.moved(0.89, 1, 32) == 0.9
    assert math.isclose(Augment().moved(0.0, 1, 4 * 64), 256 / 500_000)
    assert each.moved(0.2, 0.7, 32) != each.moved(0.2, 0.7, 64)  # the control


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1}, r"augment.target is 1; it must lie in \(-1, 1\)"),
        ({"target": math.nan}, "augment.target is nan"),
        ({"speed": 0}, "augment.speed is 0; it must be > 0"),
        ({"limit": 1.5}, r"augment.limit is 1.5; it must lie in \(0, 1\]"),
        ({"limit": 0}, "augment.limit is 0"),
        ({"blit": False, "geometry": False, "color": False}, "augment has no transforms; set one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**settings)
