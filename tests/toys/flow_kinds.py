"""A small flow of each kind, and data for it."""

from typing import Any

import torch
from nflows import distributions, flows, transforms

from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.flow.config import AutoregressiveFlowConfig, CouplingFlowConfig, GlowConfig, SplineFlowConfig
from unlearn.models.flow.layers import Logit
from unlearn.models.flow.wrapper import Flow

IMAGE = {"shape": (1, 4, 4), "levels": 17}
VECTOR = {"shape": (3,), "levels": None}
KINDS = {
    "glow": (GlowConfig(scales=2, depth=2, width=5), IMAGE),
    "glow_additive": (GlowConfig(scales=1, depth=2, width=5, coupling="additive"), IMAGE),
    "glow_bounded": (GlowConfig(scales=2, depth=2, width=5, coupling="bounded"), IMAGE),
    "glow_odd": (GlowConfig(scales=2, depth=1, width=5), {"shape": (1, 6, 6), "levels": 256}),
    "coupling_flow": (CouplingFlowConfig(depth=3, width=6), VECTOR),
    "autoregressive_flow": (AutoregressiveFlowConfig(depth=2, width=6), VECTOR),
    "spline_flow": (SplineFlowConfig(depth=3, width=6, bins=4), VECTOR),
}


def stir(flow: Flow, amount: float = 0.2) -> Flow:
    """Move every weight, so that no layer is the identity it starts as."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return flow


def items(info: dict[str, Any], count: int, first: int = 0) -> Batch:
    """Return ``count`` random items with ids from ``first`` on."""
    ids = torch.arange(first, first + count)
    if info["levels"] is None:
        return {"id": ids, "vector": 2 * Randomness(1).normal(ids, info["shape"]) + 1}
    return {"id": ids, "image": Randomness(1).integers(ids, info["levels"], info["shape"]).to(torch.uint8)}


def part(batch: Batch, rows: slice) -> Batch:
    return {key: value[rows] for key, value in batch.items()}


def own_flow() -> Any:
    layers = [transforms.ActNorm(4), transforms.OneByOneConvolution(4)]
    transform = transforms.CompositeTransform([Logit(0.05), transforms.SqueezeTransform(), *layers])
    return flows.Flow(transform, distributions.StandardNormal([4, 2, 2]))
