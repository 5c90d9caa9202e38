"""Architectures of flows, built from a kind and its settings as a recipe or ``config.json`` gives them."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from nflows import distributions, flows, transforms
from nflows.nn.nets import ResidualNet
from torch import Tensor, nn

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.randomness import Randomness
from unlearn.core.validation import above, at_least, at_most
from unlearn.models.flow.layers import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    BoundedCoupling,
    CouplingNet,
    InvertibleConvolution,
    Logit,
    Squeeze,
)

Coupling = Literal["affine", "bounded", "additive"]
"""How a coupling acts: nflows' affine one, the affine one with a bounded factor, or a shift alone."""

_COUPLINGS: dict[str, Any] = {"affine": AffineCoupling, "bounded": BoundedCoupling, "additive": AdditiveCoupling}


def build_flow(
    kind: str, shape: tuple[int, ...], levels: int | None, settings: Mapping[str, Any], randomness: Randomness
) -> Any:
    """Build an untrained nflows flow.

    Args:
        kind: one of ``ARCHITECTURES``.
        shape: of one item: (C, H, W) or (D,).
        levels: number of grey levels of images, None for vectors.
        settings: the keyword arguments of the architecture; ``temperature``, which shapes samples alone, is checked
            and not used.
        randomness: of the initial weights.

    Raises:
        RecipeError: the kind is unknown, or the architecture does not take such data.
        ValueError: a setting is out of range.
        TypeError: a setting is missing or unknown.
    """
    if kind not in ARCHITECTURES:
        raise RecipeError(f"unknown kind {kind!r}. {did_you_mean(kind, ARCHITECTURES)}")
    check_settings(settings)
    with randomness.child("weights").seeding():
        own = {name: value for name, value in settings.items() if name != "temperature"}
        return ARCHITECTURES[kind](shape, levels, **own)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError where one of the settings is out of range."""
    names = ("depth", "width", "scales", "bins", "temperature", "tail")
    given = SimpleNamespace(**{**dict.fromkeys(names), **settings})  # no architecture has all of them, and None passes
    at_least(given, depth=1, width=1, scales=1, bins=2)
    at_most(given, depth=1000, width=2**16, scales=32, bins=2**12)  # a file may say anything
    above(given, temperature=0, tail=0)
    if not 0 < settings.get("alpha", 0.1) < 0.5:
        raise ValueError(f"alpha is {settings['alpha']}; it must lie between 0 and 0.5")
    if settings.get("coupling", "affine") not in get_args(Coupling):
        raise ValueError(f"coupling is {settings['coupling']!r}; it must be affine, bounded or additive")


def shrink_factors(height: int, width: int) -> list[int]:
    """Return the factors by which the scales of a Glow shrink an image in turn: 2, 2, 7 for 28 x 28."""
    factors, side = [], math.gcd(height, width)
    while side > 1:
        factors.append(next(f for f in range(2, side + 1) if side % f == 0))
        side //= factors[-1]
    return factors


def _glow(
    shape: tuple[int, ...], levels: int | None, *, scales: int, depth: int, width: int, coupling: str, alpha: float
) -> Any:
    """Build a multiscale Glow over images in [0, 1] (see ``GlowConfig``)."""
    if levels is None or len(shape) != 3:
        raise RecipeError(f"model glow takes images; the data has shape {shape}. Type model=spline_flow for vectors.")
    channels, rows, columns = shape
    most = len(shrink_factors(rows, columns))
    if scales > most:
        remedy = f"Type model.scales={most}." if most else "Choose sizes with a common factor, e.g. data.size=32."
        raise RecipeError(
            f"model.scales is {scales}, and each scale shrinks the image by a whole number; "
            f"{rows} x {columns} pixels can be shrunk {most} times. {remedy}"
        )
    kind = _COUPLINGS[coupling]
    multiscale = transforms.MultiscaleCompositeTransform(scales)
    for factor in shrink_factors(rows, columns)[:scales]:
        channels, rows, columns = factor**2 * channels, rows // factor, columns // factor
        net = partial(CouplingNet, width=width, kernel=1 if rows == columns == 1 else 3)
        mask = (torch.arange(channels) < channels // 2).int()
        steps = [(ActNorm(channels), InvertibleConvolution(channels), kind(mask, net)) for _ in range(depth)]
        scale = transforms.CompositeTransform([Squeeze(factor), *chain.from_iterable(steps)])
        rest = multiscale.add_transform(scale, (channels, rows, columns))
        channels = channels if rest is None else rest[0]  # half of the channels leave as latents, but at the last scale
    transform = transforms.CompositeTransform([Logit(alpha), multiscale])
    return flows.Flow(transform, distributions.StandardNormal([math.prod(shape)]))


def _coupling_flow(shape: tuple[int, ...], levels: int | None, *, depth: int, width: int) -> Any:
    """Build a Real NVP over vectors (D,), D >= 2 (see ``CouplingFlowConfig``)."""
    features = _features("coupling_flow", shape, levels, 2)
    layers: list[Any] = []
    for index in range(depth):
        mask, net = _alternating(features, index), _vector_net(width)
        layers += [transforms.AffineCouplingTransform(mask, net), ActNorm(features)]
    return _over_vectors(features, layers)


def _spline_flow(shape: tuple[int, ...], levels: int | None, *, depth: int, width: int, bins: int, tail: float) -> Any:
    """Build a spline flow over vectors (D,), D >= 2 (see ``SplineFlowConfig``)."""
    features = _features("spline_flow", shape, levels, 2)
    layers = [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            _alternating(features, index), _vector_net(width), num_bins=bins, tails="linear", tail_bound=tail
        )
        for index in range(depth)
    ]
    return _over_vectors(features, layers)


def _autoregressive_flow(shape: tuple[int, ...], levels: int | None, *, depth: int, width: int) -> Any:
    """Build a masked autoregressive flow over vectors (D,), D >= 1 (see ``AutoregressiveFlowConfig``)."""
    features = _features("autoregressive_flow", shape, levels, 1)
    layers: list[Any] = []
    for _ in range(depth):
        masked = transforms.MaskedAffineAutoregressiveTransform(features, hidden_features=width)
        layers += [transforms.ReversePermutation(features), masked, ActNorm(features)]
    return _over_vectors(features, layers)


def _over_vectors(features: int, layers: list[Any]) -> Any:
    transform = transforms.CompositeTransform([ActNorm(features), *layers])
    return flows.Flow(transform, distributions.StandardNormal([features]))


def _features(kind: str, shape: tuple[int, ...], levels: int | None, least: int) -> int:
    if levels is not None or len(shape) != 1 or shape[0] < least:
        raise RecipeError(
            f"model {kind} takes vectors of {least} values or more; the data has shape {shape}. "
            "For images type model=glow."
        )
    return shape[0]


def _alternating(features: int, index: int) -> Tensor:
    return (torch.arange(features) + index) % 2  # 0, 1, 0, ... and 1, 0, 1, ... in turn


def _vector_net(width: int) -> Callable[[int, int], nn.Module]:
    return lambda taken, given: ResidualNet(taken, given, hidden_features=width)


ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "glow": _glow,
    "coupling_flow": _coupling_flow,
    "autoregressive_flow": _autoregressive_flow,
    "spline_flow": _spline_flow,
}
"""Kind -> (shape, levels, **settings) -> nflows flow."""
