"""Adaptive discriminator augmentation: random transforms of what a discriminator sees, so that fewer images suffice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearn.core.randomness import Randomness
from unlearn.models.gan.stylegan2.layers import exact

SYM6 = (
    0.0154041093270448243,
    0.00349071208422216252,
    -0.117990111148520025,
    -0.048311742585698055,
    0.491055941927973733,
    0.787641141028650996,
    0.337929421728165833,
    -0.0726375227863765835,
    -0.021060292512370848,
    0.0447249017707813847,
    0.00176771186425400774,
    -0.00780070832503238041,
)
"""The orthogonal low-pass filter of twelve taps and six vanishing moments whose phase is nearest to linear."""

MEAN = sum(index * tap for index, tap in enumerate(SYM6)) / sum(SYM6)
"""Of the taps' places: subtracting it centres the filter, so that linear ramps are resampled exactly."""

MARGIN = 4
"""Pixels by which images are continued, so that every tap finds one."""

Entry = Tensor | float


@dataclass
class Augment:
    """Show a discriminator real and drawn images through the same random transforms, each with probability p.

    p begins at 0. After every 4th step of the discriminator it rises by the real images seen since, over ``speed``,
    where r_t, the mean sign of the discriminator's logits at them, is above ``target``, falls by as much where it is
    below, and stays in [0, ``limit``].

    Differences from the paper: pixels are copied, not filtered, where no transform of ``geometry`` applies; images are
    mirrored at their ends as often as places ask for; p has a bound above as well. Grey images take colour as three
    equal channels would: brightness, contrast and the sign act on them, hue and saturation leave grey as it is.

    Args:
        target: r_t at which p is stable, in (-1, 1).
        speed: images in which p can rise from 0 to 1, > 0.
        limit: largest p, in (0, 1]. Where p is near 1 the generator learns to draw turned and recoloured images; the
            paper saw none of that below 0.8, and has no bound (1).
        blit: flips, quarter turns and shifts by whole pixels.
        geometry: scaling, turns, stretching and shifts, with filters against aliasing.
        color: brightness, contrast, sign of the luma, hue and saturation.

    Reference:
        Karras et al., Training Generative Adversarial Networks with Limited Data, 2020, section 3 and appendix B.
        arXiv:2006.06676
    """

    target: float = 0.6
    speed: float = 500_000
    limit: float = 0.8
    blit: bool = True
    geometry: bool = True
    color: bool = True

    every: ClassVar[int] = 4
    """Steps of the discriminator from one update of p to the next."""

    def __post_init__(self) -> None:
        if not -1 < self.target < 1:
            raise ValueError(f"augment.target is {self.target}; it must lie in (-1, 1)")
        if not self.speed > 0:
            raise ValueError(f"augment.speed is {self.speed}; it must be > 0")
        if not 0 < self.limit <= 1:
            raise ValueError(f"augment.limit is {self.limit}; it must lie in (0, 1]")
        if not (self.blit or self.geometry or self.color):
            raise ValueError("augment has no transforms; set one of blit, geometry and color, or write augment=null")

    def moved(self, p: float, sign: float, images: float) -> float:
        """Return p after ``images`` more real images whose mean sign is ``sign``."""
        way = (sign > self.target) - (sign < self.target)
        return min(max(p + way * images / self.speed, 0.0), self.limit)

    def __call__(self, images: Tensor, ids: Tensor, randomness: Randomness, p: float) -> Tensor:
        """Return images (B, C, S, S) as a discriminator is to see them, differentiable any number of times.

        Args:
            images: in [-1, 1]; what comes back may lie outside.
            ids: one per image, (B,); the transforms of an image depend on its own alone.
            randomness: of the transforms.
            p: probability of each, in [0, 1].
        """
        with torch.autocast(images.device.type, enabled=False):
            found = exact(images)
            draws, side = Draws(ids, randomness, p, found.dtype), found.shape[-1]
            identity = torch.eye(3, dtype=found.dtype, device=found.device).expand(len(found), -1, -1)
            source = blitted(draws, side) if self.blit else identity
            if self.geometry:
                moving = moved_about(draws, side)
                still = (moving == identity).all(dim=(1, 2))[:, None, None, None]
                found = torch.where(still, copied(found, source), resampled(found, source @ moving))
            elif self.blit:
                found = copied(found, source)
            if self.color:
                found = recoloured(found, draws)
            return found.to(images.dtype)


@dataclass(frozen=True)
class Draws:
    """Random values, one per item; with probability 1 - p a value without effect is taken instead.

    Args:
        ids: (B,).
        randomness: of the values.
        p: the probability.
        dtype: of the values.
    """

    ids: Tensor
    randomness: Randomness
    p: float
    dtype: torch.dtype

    def uniform(self, name: str, count: int = 1) -> Tensor:
        """Return values in [-1, 1), (B, count), or (B,) of one, that are 0 without effect."""
        drawn = 2 * self.randomness.child(name).uniform(self.ids, (count,), self.dtype) - 1
        return self._taken(name, drawn)

    def normal(self, name: str, count: int = 1) -> Tensor:
        """Return standard normal values, (B, count), or (B,) of one, that are 0 without effect."""
        return self._taken(name, self.randomness.child(name).normal(self.ids, (count,), self.dtype))

    def integers(self, name: str, high: int) -> Tensor:
        """Return integers in [0, high), (B,), that are 0 without effect."""
        return self._taken(name, self.randomness.child(name).integers(self.ids, high, (1,)))

    def _taken(self, name: str, values: Tensor) -> Tensor:
        gate = self.randomness.child(name).child("gate").uniform(self.ids, (1,)) < self.p
        values = torch.where(gate, values, torch.zeros_like(values))
        return values.squeeze(1) if values.shape[1] == 1 else values


def matrices(rows: Sequence[Sequence[Entry]], like: Tensor) -> Tensor:
    """Return matrices (B, R, C) of entries that are numbers or (B,); ``like`` (B,) says their type and place."""
    full = [[x if isinstance(x, Tensor) else torch.full_like(like, x) for x in row] for row in rows]
    return torch.stack([torch.stack(row, dim=1) for row in full], dim=1)


def turn(cosine: Tensor, sine: Tensor) -> Tensor:
    """Return turns of places (x, y, 1), (B, 3, 3)."""
    return matrices([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]], cosine)


def stretch(x: Tensor, y: Tensor) -> Tensor:
    """Return changes of scale of places (x, y, 1), (B, 3, 3)."""
    return matrices([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]], x)


def shift(by: Tensor) -> Tensor:
    """Return shifts (B, 2) of places (x, y, 1), (B, 3, 3)."""
    x, y = by.unbind(dim=1)
    return matrices([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]], x)


def blitted(draws: Draws, side: int) -> Tensor:
    """Return where the pixels come from, (B, 3, 3), under a flip, then quarter turns, then a shift of whole pixels.

    Matrices map places (x, y, 1), in pixels from the centre of the image, in the moved image to those in the given one.
    """
    flip = 1 - 2 * draws.integers("flip", 2).to(draws.dtype)
    quarters = draws.integers("quarters", 4)
    cosine = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=draws.dtype, device=flip.device)
    by = (draws.uniform("shift", 2) * side / 8).round()
    return stretch(flip, torch.ones_like(flip)) @ turn(cosine[quarters], cosine[quarters - 1]) @ shift(-by)


def moved_about(draws: Draws, side: int) -> Tensor:
    """Return where places come from, as ``blitted`` does, under a scaling, a turn, a stretching, a turn, a shift."""
    # each of two turns has p_rot with 1 - (1 - p_rot)^2 = p, so that one or both are made with probability p
    apart = Draws(draws.ids, draws.randomness, 1 - math.sqrt(1 - draws.p), draws.dtype)
    # factors are log-normal; the sign is that of the inverse, as matrices map places back to where they come from
    scale, wide = (torch.exp2(-0.2 * draws.normal(name)) for name in ("scale", "stretch"))
    first, second = (math.pi * apart.uniform(name) for name in ("turn", "second turn"))
    before, after = (turn(angle.cos(), angle.sin()) for angle in (first, second))
    by = draws.normal("drift", 2) * side / 8
    return stretch(scale, scale) @ before @ stretch(wide, 1 / wide) @ after @ shift(-by)


def sources(matrix: Tensor, places: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return where each place (x, y) is read, (B, 1, N * N) each, in pixels of an image that is mirrored at its ends.

    Args:
        matrix: (B, 3, 3); see ``blitted``.
        places: of columns and of rows, (N,), in pixels from the first one.
        side: of the image.
    """
    y, x = torch.meshgrid(places, places, indexing="ij")
    centre, last = (side - 1) / 2, side - 1
    grid = torch.stack([x.flatten() - centre, y.flatten() - centre, torch.ones_like(x).flatten()])
    found = (matrix @ grid)[:, :2] + centre
    # a triangle wave of period 2 (side - 1) mirrors at the ends without repeating the outermost pixel
    found = last - (found.remainder(2 * last) - last).abs()
    return found[:, :1], found[:, 1:]


def copied(images: Tensor, source: Tensor) -> Tensor:
    """Return images whose pixels are those at ``source``, which maps pixels to pixels; see ``blitted``."""
    side = images.shape[-1]
    x, y = sources(source, torch.arange(side, dtype=images.dtype, device=images.device), side)
    return looked_up(images, x.round().long(), y.round().long()).view_as(images)


def resampled(images: Tensor, source: Tensor) -> Tensor:
    """Return images that are looked up at ``source`` on a grid of twice the pixels, filtered before and after.

    Lookup is bilinear. The filter is orthogonal, so that up- and downsampling cancel for the identity.
    """
    side, taps = images.shape[-1], torch.tensor(SYM6, dtype=images.dtype, device=images.device)
    kernel = torch.outer(taps, taps)[None, None]
    # the taps sum to sqrt(2) and the kernel to 2: twice that is the gain of 4 that zero insertion asks for,
    # and half of it the mean when every second value is kept
    padded = F.pad(images, (MARGIN,) * 4, mode="reflect").flatten(0, 1)[:, None]
    fine = F.conv_transpose2d(padded, 2 * kernel, stride=2).unflatten(0, images.shape[:2]).squeeze(2)
    wanted = torch.arange(2 * side + len(SYM6) - 2, dtype=images.dtype, device=images.device)
    x, y = (2 * (place + MARGIN) + MEAN for place in sources(source, (wanted - MEAN) / 2, side))
    left, top = x.floor(), y.floor()
    found = torch.zeros((), dtype=images.dtype, device=images.device)
    for column, across in ((left, 1 - x + left), (left + 1, x - left)):
        for row, down in ((top, 1 - y + top), (top + 1, y - top)):
            found = found + across * down * looked_up(fine, column.long(), row.long())
    found = found.reshape(-1, 1, len(wanted), len(wanted))
    return F.conv2d(found, kernel / 2, stride=2).view_as(images)


def looked_up(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return pixels (B, C, n) of columns and rows (B, 1, n)."""
    return images.flatten(2).gather(2, (y * images.shape[-1] + x).expand(-1, images.shape[1], -1))


def recoloured(images: Tensor, draws: Draws) -> Tensor:
    """Return images (B, C, H, W) of other brightness, contrast, sign of the luma, hue and saturation."""
    brighter = images + 0.2 * draws.normal("brightness")[:, None, None, None]
    matrix = colours(
        torch.exp2(0.5 * draws.normal("contrast")),
        draws.integers("sign", 2).to(draws.dtype),
        math.pi * draws.uniform("hue"),
        torch.exp2(draws.normal("saturation")),
        images.shape[1],
    )
    return (matrix @ brighter.flatten(2)).view_as(images)


def colours(contrast: Tensor, sign: Tensor, hue: Tensor, saturation: Tensor, channels: int) -> Tensor:
    """Return what acts on the channels of a pixel, (B, C, C), with v the axis of equal channels, the luma.

    Args:
        contrast: factor of all, (B,).
        sign: 1 mirrors at the plane across v, 0 does not, (B,).
        hue: angle of a turn about v, (B,); without effect where there are not three channels.
        saturation: factor of what is across v, (B,).
        channels: C.
    """
    grey = torch.full((channels, channels), 1 / channels, dtype=hue.dtype, device=hue.device)  # v v^T
    rest = torch.eye(channels, dtype=hue.dtype, device=hue.device) - grey
    contrast, sign, hue, saturation = (each[:, None, None] for each in (contrast, sign, hue, saturation))
    turned = rest.expand(len(hue), -1, -1)
    if channels == 3:  # Rodrigues' formula
        cross = hue.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        turned = hue.cos() * rest + hue.sin() * cross
    # along v the image is mirrored by I - 2 v v^T or left, across v turned and saturated
    return contrast * ((1 - 2 * sign) * grey + saturation * turned)
