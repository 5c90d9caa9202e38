"""The two units in which a distance from the threshold enters the loss."""

import pytest
import torch

from unlearn.models.likelihood import Moments
from unlearn.objectives.flow.threshold import distance_loss


def test_both_units_in_closed_form() -> None:
    """At d = 3 sigma: sqrt(1 + 9) - 1 = 2.1623; with sigma = .2, d = .6 bits/dim: 1 / (1 + exp(-.36)) = 0.5890."""
    d = torch.tensor([3.0, -3.0])
    moments = Moments(2.0, 0.2)
    assert distance_loss(d, moments, "sigma").tolist() == pytest.approx([2.16228, 2.16228], abs=1e-5)
    assert distance_loss(d, moments, "bits_per_dim").tolist() == pytest.approx([0.58904, 0.58904], abs=1e-5)


def test_only_the_raw_unit_depends_on_sigma() -> None:
    d = torch.tensor([2.0])
    narrow, wide = Moments(2.0, 0.1), Moments(2.0, 0.4)
    assert torch.equal(distance_loss(d, narrow, "sigma"), distance_loss(d, wide, "sigma"))
    assert distance_loss(d, narrow, "bits_per_dim") < distance_loss(d, wide, "bits_per_dim")
