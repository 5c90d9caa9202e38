"""Normalizing flows over images and vectors: what shapes them before training."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import at_least
from unlearn.models.base import ModelConfig, Wrapper
from unlearn.models.flow.layers import Coupling, autoregressive_flow, coupling_flow, glow, shrink_factors, spline_flow
from unlearn.models.flow.wrapper import Flow

log = logging.getLogger(__name__)

__all__ = [
    "CONFIGS",
    "AutoregressiveFlowConfig",
    "CouplingFlowConfig",
    "Flow",
    "FlowConfig",
    "GlowConfig",
    "SplineFlowConfig",
]


@dataclass
class FlowConfig(ModelConfig):
    """What all flows share.

    Args:
        depth: number of steps (a scale, for Glow), >= 1.
        width: hidden channels or units of the networks, >= 1.
        temperature: standard deviation of the latents that samples start from, > 0; below 1 samples are more
            typical and less varied. The likelihood does not depend on it. null takes the stored value, or 1.
    """

    depth: int = 6
    width: int = 48
    temperature: float | None = None

    wrapper: ClassVar[type[Wrapper]] = Flow
    kind: ClassVar[str]
    not_in_training: ClassVar[tuple[str, ...]] = (*ModelConfig.not_in_training, "temperature")

    def __post_init__(self) -> None:
        for name in ("depth", "width", "temperature"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be > 0")

    def build(self, info: dict[str, Any], randomness: Randomness) -> Flow:
        """Build the untrained flow for items of ``info["shape"]`` and ``info["levels"]`` (None for vectors)."""
        shape, levels = tuple(info["shape"]), info.get("levels")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.child("weights").generator().initial_seed())
            flow = self.transform(shape, levels)
        description = {"kind": self.kind, "config": self.settings(), "info": {"shape": list(shape), "levels": levels}}
        return Flow(flow, shape, levels, self.temperature or 1.0, description)

    def load(self, folder: Path) -> Flow:
        """Read a trained flow; where its shape is not this configuration's, the folder counts, and a line says so."""
        flow = Flow.from_pretrained(folder)
        if self.temperature is not None:
            flow.temperature = self.temperature
        stored = (flow.description or {}).get("config", {})
        if other := [f"{key}={stored[key]}" for key, mine in self.settings().items() if stored.get(key, mine) != mine]:
            log.warning(
                "%s holds a flow of %s; the recipe's model settings shape new models only", folder, ", ".join(other)
            )
        return flow

    def settings(self) -> dict[str, Any]:
        """Return what shapes the flow, without the engine's own settings."""
        of_the_engine = {field.name for field in fields(ModelConfig)}
        own = {key: value for key, value in asdict(self).items() if key not in of_the_engine}
        return {**own, "temperature": self.temperature or 1.0}

    def transform(self, shape: tuple[int, ...], levels: int | None) -> Any:
        """Return the nflows flow with fresh weights from the global generator."""
        raise NotImplementedError

    def features(self, shape: tuple[int, ...], levels: int | None, least: int) -> int:
        """Return D of vectors; refuse images and vectors shorter than ``least``."""
        if levels is not None or len(shape) != 1 or shape[0] < least:
            raise RecipeError(
                f"model {self.kind} takes vectors of {least} values or more; the data has shape {shape}. "
                "For images type model=glow."
            )
        return shape[0]


@dataclass
class GlowConfig(FlowConfig):
    """Multiscale Glow for images.

    Args:
        scales: number of scales, >= 1. Each divides height and width by their smallest common factor: 28 pixels
            become 14, 7 and 1.
        coupling: affine as nflows has it; bounded, an affine one by a factor of e at most, whose samples do not
            explode and which fits better; additive keeps the volume.
        alpha: the logit's distance from 0 and 1, in (0, 0.5).

    Reference:
        Kingma and Dhariwal, Glow, 2018. arXiv:1807.03039
    """

    scales: int = 2
    coupling: Coupling = "affine"
    alpha: float = 0.05

    kind: ClassVar[str] = "glow"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, scales=1)
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha is {self.alpha}; it must lie between 0 and 0.5")
        if self.coupling not in get_args(Coupling):
            raise ValueError(f"coupling is {self.coupling!r}; it must be affine, bounded or additive")

    def transform(self, shape: tuple[int, ...], levels: int | None) -> Any:
        """Return the Glow with fresh weights."""
        if levels is None or len(shape) != 3:
            raise RecipeError(
                f"model glow takes images; the data has shape {shape}. Type model=spline_flow for vectors."
            )
        channels, height, width = shape
        most = len(shrink_factors(height, width))
        if self.scales > most:
            remedy = f"Type model.scales={most}." if most else "Choose sizes with a common factor, e.g. data.size=32."
            raise RecipeError(
                f"model.scales is {self.scales}, and each scale shrinks the image by a whole number; "
                f"{height} x {width} pixels can be shrunk {most} times. {remedy}"
            )
        return glow((channels, height, width), self.scales, self.depth, self.width, self.coupling, self.alpha)


@dataclass
class CouplingFlowConfig(FlowConfig):
    """Affine couplings (Real NVP) for vectors of two or more values."""

    kind: ClassVar[str] = "coupling_flow"

    def transform(self, shape: tuple[int, ...], levels: int | None) -> Any:
        """Return the flow with fresh weights."""
        return coupling_flow(self.features(shape, levels, 2), self.depth, self.width)


@dataclass
class AutoregressiveFlowConfig(FlowConfig):
    """Masked autoregressive flow for vectors; sampling takes as many passes as there are values."""

    kind: ClassVar[str] = "autoregressive_flow"

    def transform(self, shape: tuple[int, ...], levels: int | None) -> Any:
        """Return the flow with fresh weights."""
        return autoregressive_flow(self.features(shape, levels, 1), self.depth, self.width)


@dataclass
class SplineFlowConfig(FlowConfig):
    """Rational-quadratic spline couplings for vectors of two or more values.

    Args:
        bins: pieces of each spline, >= 2.
        tail: splines act on [-tail, tail] standard deviations of the data and are the identity outside, > 0.
    """

    bins: int = 8
    tail: float = 4.0

    kind: ClassVar[str] = "spline_flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2 or not self.tail > 0:
            raise ValueError(f"bins is {self.bins} and tail is {self.tail}; bins must be >= 2 and tail > 0")

    def transform(self, shape: tuple[int, ...], levels: int | None) -> Any:
        """Return the flow with fresh weights."""
        return spline_flow(self.features(shape, levels, 2), self.depth, self.width, self.bins, self.tail)


CONFIGS: dict[str, type[FlowConfig]] = {
    config.kind: config for config in (GlowConfig, CouplingFlowConfig, AutoregressiveFlowConfig, SplineFlowConfig)
}
