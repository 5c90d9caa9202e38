"""Likelihoods are those of a density: of pixels, integrated over space, and of the samples."""

import math

import pytest
import torch
from nflows import distributions, flows, transforms
from torch import Tensor

from tests.toys.flow_kinds import IMAGE, items, stir
from unlearn.core.randomness import Randomness
from unlearn.models.flow.config import (
    AutoregressiveFlowConfig,
    CouplingFlowConfig,
    FlowConfig,
    GlowConfig,
    SplineFlowConfig,
)
from unlearn.models.flow.wrapper import Flow

R = Randomness(3)


def test_discrete_likelihoods_of_all_images_sum_to_one() -> None:
    """All 2^4 images of 2 x 2 pixels and 2 levels.

    The boxes (x + u) / 2 tile [0, 1]^4, so the sum over x of P(x) = E_u p((x + u) / 2) / 2^4 is the mass of p on
    [0, 1]^4; what lacks to 1 is the share of samples outside. A call gives a draw of log p((x + u) / 2) - 4 log 2, so
    by Jensen the sum of exp(mean log_prob) is below. The control: without the 4 log 2, both would be 16 times as large.
    """
    info = {"shape": (1, 2, 2), "levels": 2}
    flow = stir(GlowConfig(scales=1, depth=2, width=4).build(info, Randomness(0)))
    draws = 2048
    images = torch.tensor([[(code >> bit) & 1 for bit in range(4)] for code in range(16)], dtype=torch.uint8)
    repeated = images.view(16, 1, 1, 2, 2).expand(16, draws, 1, 2, 2).reshape(-1, 1, 2, 2)
    with torch.no_grad():
        log_prob = flow.log_prob({"id": torch.arange(16 * draws), "image": repeated}, R).view(16, draws)
        samples = flow.decode(flow.latents(torch.arange(16 * draws), R)).flatten(1)
    exact = log_prob.exp().mean(1).sum().item()
    bound = log_prob.mean(1).exp().sum().item()
    outside = ((samples < 0) | (samples >= 1)).any(1).float().mean().item()
    assert exact + outside == pytest.approx(1, abs=0.01)
    assert 0.1 < bound < exact < 1


def test_uniform_density_has_log2_levels_bits() -> None:
    """p(y) = 1 on [0, 1]^M gives every image log2 L bits/dim, 4.087 for 17 levels, whatever the noise."""
    flow = Flow.wrap(flows.Flow(transforms.IdentityTransform(), Uniform()), (1, 4, 4), levels=17)
    bits = flow.training_loss(items(IMAGE, 3), R)
    torch.testing.assert_close(bits, torch.full((3,), math.log2(17)))


class Uniform(distributions.Distribution):  # type: ignore[misc]
    """The uniform density on [0, 1]^M."""

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        inside = ((inputs >= 0) & (inputs < 1)).flatten(1).all(dim=1)
        return torch.where(inside, 0.0, -math.inf)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (AutoregressiveFlowConfig(depth=1, width=4), 1),
        (AutoregressiveFlowConfig(depth=2, width=6), 2),
        (CouplingFlowConfig(depth=2, width=6), 2),
        (SplineFlowConfig(depth=2, width=6, bins=4), 2),
    ],
)
def test_density_integrates_to_one(config: FlowConfig, size: int) -> None:
    """The midpoint rule in t, x = 3 t / (1 - t^2), over the whole plane; half of it holds less (the control)."""
    info = {"shape": (size,), "levels": None}
    flow = stir(config.build(info, Randomness(0))).double()
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    axis, slope = 3 * t / (1 - t**2), 3 * (1 + t**2) / (1 - t**2) ** 2 / 200
    points = torch.cartesian_prod(*[axis] * size).view(-1, size)
    cells = torch.cartesian_prod(*[slope] * size).view(-1, size).prod(1)
    with torch.no_grad():
        mass = flow.log_prob({"id": torch.arange(len(points)), "vector": points}, R).exp() * cells
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    assert mass[: len(mass) // 2].sum().item() < 0.95


def test_samples_follow_the_density() -> None:
    """The mean of -log p over the model's own samples is its entropy.

    An autoregressive flow of one value is linear, x = s z + m, and its entropy log s + log sqrt(2 pi e).
    """
    flow = stir(AutoregressiveFlowConfig(depth=1, width=4).build({"shape": (1,), "levels": None}, Randomness(0)))
    samples = flow.sample(torch.arange(20000), R)
    spread = samples["vector"].std().item()
    entropy = -flow.log_prob(samples, R).mean().item()
    assert entropy == pytest.approx(math.log(spread) + 0.5 * math.log(2 * math.pi * math.e), abs=0.02)
