"""Recipe settings of normalizing flows over images and vectors."""

import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from unlearn.core.randomness import Randomness
from unlearn.models.base import ModelConfig, Wrapper
from unlearn.models.flow.architectures import Coupling, build_flow, check_settings
from unlearn.models.flow.wrapper import Flow

log = logging.getLogger(__name__)


@dataclass
class FlowConfig(ModelConfig):
    """Settings shared by all flows.

    Args:
        depth: number of steps of the flow (per scale, for Glow), >= 1.
        width: hidden channels or units of the networks, >= 1.
        temperature: standard deviation of the latents that samples start from, > 0; below 1 samples are more
            typical and less varied. The likelihood does not depend on it. null takes the stored value, or 1.
    """

    depth: int = 6
    width: int = 48
    temperature: float | None = None

    wrapper: ClassVar[type[Wrapper]] = Flow
    kind: ClassVar[str]
    built_from: ClassVar[tuple[str, ...]] = ("shape",)
    not_in_training: ClassVar[tuple[str, ...]] = (*ModelConfig.not_in_training, "temperature")

    def __post_init__(self) -> None:
        check_settings(asdict(self))

    @override
    def build(self, info: dict[str, Any], randomness: Randomness) -> Flow:
        """Build the untrained flow for items of ``info["shape"]`` and ``info["levels"]`` (None for vectors)."""
        shape, levels = tuple(info["shape"]), info.get("levels")
        settings = self.settings()
        flow = build_flow(self.kind, shape, levels, settings, randomness)
        description = {"kind": self.kind, "config": settings, "info": {"shape": list(shape), "levels": levels}}
        return Flow(flow, shape, levels, settings["temperature"], description)

    @override
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
        engine = {field.name for field in fields(ModelConfig)}
        own = {key: value for key, value in asdict(self).items() if key not in engine}
        return {**own, "temperature": self.temperature or 1.0}


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


@dataclass
class CouplingFlowConfig(FlowConfig):
    """Affine couplings for vectors of two or more values (Dinh et al., Real NVP, 2017. arXiv:1605.08803)."""

    kind: ClassVar[str] = "coupling_flow"


@dataclass
class AutoregressiveFlowConfig(FlowConfig):
    """Masked autoregressive flow for vectors; sampling a vector takes one pass per value.

    Reference:
        Papamakarios et al., Masked Autoregressive Flow, 2017. arXiv:1705.07057
    """

    kind: ClassVar[str] = "autoregressive_flow"


@dataclass
class SplineFlowConfig(FlowConfig):
    """Rational-quadratic spline couplings for vectors of two or more values.

    Args:
        bins: pieces of each spline, >= 2.
        tail: splines act on [-tail, tail] standard deviations of the data and are the identity outside, > 0.

    Reference:
        Durkan et al., Neural Spline Flows, 2019. arXiv:1906.04032
    """

    bins: int = 8
    tail: float = 4.0

    kind: ClassVar[str] = "spline_flow"
