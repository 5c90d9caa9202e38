"""Taming's retain term: Kullback-Leibler divergences of Gaussian fits, with true and with detached logarithms."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.toys.flow_objectives import PixelGaussian, bits, context, pixel_splits
from unlearn.core.errors import RecipeError
from unlearn.objectives.flow.taming_retain import TamingRetain

BASE = 0.2
"""s_B, standard deviation of bits/dim under the target."""
TAMED = 0.25
"""s_T, standard deviation of bits/dim under the model."""


def spread(std, mean=2.0):
    """Three values with this mean and sample standard deviation."""
    return mean + std * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)


def values(std_model, mean_model=2.0):
    return torch.stack((spread(std_model, mean_model), spread(BASE)), dim=1)


def slope(**settings):
    """d loss / d s_T at s_T = 0.25, s_B = 0.2 and equal means."""
    std = torch.tensor(TAMED, dtype=torch.float64, requires_grad=True)
    loss = TamingRetain(gamma=1.0, **settings).reduce(values(std), torch.ones(3, dtype=torch.float64))
    return torch.autograd.grad(loss, std)[0].item()


@pytest.mark.parametrize(
    ("direction", "true", "released"), [("forward", 1.44, -2.56), ("reverse", 2.25, 6.25), ("both", 3.69, 3.69)]
)
def test_the_gradient_is_that_of_the_divergence_and_the_released_code_s_is_not(direction, true, released):
    """With equal means, forward: log(s_T / s_B) + s_B^2 / (2 s_T^2), slope 1 / s_T - s_B^2 / s_T^3 = 4 - 2.56;
    reverse: log(s_B / s_T) + s_T^2 / (2 s_B^2), slope -1 / s_T + s_T / s_B^2 = -4 + 6.25. Without the logarithms'
    share (+4 and -4) the sum of both stays, each alone is wrong, and forward has the wrong sign.
    """
    assert slope(direction=direction) == pytest.approx(true, abs=1e-9)
    assert slope(direction=direction, variant="released") == pytest.approx(released, abs=1e-9)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_value_is_torch_s_divergence_between_the_two_fits(variant):
    base, tamed = Normal(2.0, BASE), Normal(2.3, TAMED)
    forward, reverse = kl_divergence(base, tamed).item(), kl_divergence(tamed, base).item()
    for direction, expected in (("forward", forward), ("reverse", reverse), ("both", forward + reverse)):
        term = TamingRetain(gamma=0.6, direction=direction, variant=variant)
        found = term.reduce(values(TAMED, 2.3), torch.ones(3, dtype=torch.float64)).item()
        assert found == pytest.approx(0.6 * expected + 0.4 * 2.3, rel=1e-6)


def test_the_divergence_pulls_mean_and_spread_back_to_the_target():
    """Descent on values with a higher mean and a wider spread lowers both; with its wrong sign forward widens it."""
    for settings, narrows in (({}, True), ({"direction": "forward", "variant": "released"}, False)):
        found = values(TAMED, 2.1).requires_grad_()
        loss = TamingRetain(gamma=1.0, **settings).reduce(found, torch.ones(3, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(loss, found)
        stepped = found.detach() - 1e-3 * gradient
        assert stepped[:, 0].mean() < 2.1
        assert (stepped[:, 0].std() < TAMED) == narrows


def test_equal_models_share_their_noise_so_that_only_bits_per_dim_is_left():
    """KL = 0 and no gradient from it, whatever the noise; with its own noise the second model would not be equal."""
    splits = pixel_splits([13], [7, 8, 9, 10, 11, 12])
    model = PixelGaussian(noise=True)
    found = TamingRetain()(model, splits["retain"].batch(splits["retain"].ids), context(splits, reference=model))
    assert found.values.shape == (6, 2) and torch.equal(found.values[:, 0], found.values[:, 1])
    loss = TamingRetain(gamma=0.25).reduce(found.values, torch.ones(6))
    assert loss.item() == pytest.approx(0.75 * found.values[:, 0].mean().item(), rel=1e-6)


def test_the_reference_s_column_has_no_gradient():
    splits, model, target = pixel_splits([13], [7, 8, 9]), PixelGaussian(), PixelGaussian(mean=9.0)
    found = TamingRetain()(
        model, splits["retain"].batch(splits["retain"].ids), context(splits, reference=target)
    ).values
    found.sum().backward()
    assert target.mean.grad is None and model.mean.grad is not None
    expected = [[bits(grey), bits(grey, 9.0)] for grey in (7, 8, 9)]
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_it_is_a_statistic_of_the_whole_batch():
    """The mean of two halves' losses is not the whole batch's loss, so the engine must gather it."""
    whole = torch.cat((values(0.1), values(TAMED, 2.4)))
    term = TamingRetain()
    halves = sum(term.reduce(part, torch.ones(3)) for part in whole.split(3)) / 2
    assert term.over_batch and not torch.isclose(term.reduce(whole, torch.ones(6)), halves, rtol=1e-2)


def test_a_weight_of_zero_leaves_a_sample_out_of_the_means():
    padded = torch.cat((values(TAMED), torch.full((1, 2), 50.0)))
    mean = TamingRetain(gamma=0.0).reduce(padded, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert mean.item() == pytest.approx(2.0)


def test_settings_out_of_range_and_single_images_are_refused():
    with pytest.raises(ValueError, match="gamma"):
        TamingRetain(gamma=1.5)
    with pytest.raises(RecipeError, match=r"optim\.batch=8"):
        TamingRetain().reduce(values(TAMED)[:1], torch.ones(1))
