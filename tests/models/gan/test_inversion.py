"""Inversion: images of the generator come back, each as if it were alone, and the model stays as it is."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.gan.test_gan import BACKENDS, IDS, STREAM, drawn, small
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.wrapper import LatentGenerator


def double(kind: str) -> LatentGenerator:
    return small(kind).double()


@pytest.mark.parametrize("space", ["w", "w+"])
def test_images_of_the_generator_come_back(space: Any) -> None:
    """The image is found again to two thousandths of where the search began."""
    model = double("stylegan2")
    with torch.no_grad():
        images = model.synthesis(drawn(model)[:2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.w_avg  # noqa: B018 - measured once
    found = Inversion(space=space, steps=300, lr=0.1)(model, images, IDS[:2], STREAM)
    assert found.shape == ((2, 5) if space == "w" else (2, 4, 5))
    first, last = (
        (model.synthesis(w) - images).square().flatten(1).mean(dim=1) for w in (model.w_avg.expand(2, -1), found)
    )
    assert (last < 2e-3 * first).all()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items() if n != "generator.mapping.w_avg")
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_search_begins_at_the_mean_and_moves_by_the_rate() -> None:
    """Without noise, Adam's first step is the rate itself against the sign of the gradient."""
    model = double("dcgan")
    images = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    search = Inversion(steps=1, lr=0.3, explore=0, pixels=1e6)
    found = search(model, images, IDS[:1], STREAM)
    w = model.w_avg[None].clone().requires_grad_()
    loss = 1e6 * model.synthesis(w).square().mean()
    loss.backward()
    torch.testing.assert_close(search.loss(model, w, images, None)[0], loss)
    torch.testing.assert_close(found, -search.rate(0) * w.grad.sign(), rtol=1e-3, atol=1e-4)


def test_the_rate_rises_and_falls() -> None:
    """Of 100 steps: a fifth of the largest at first, all of it from the fifth to the 75th, half of it at 87.5."""
    search = Inversion(steps=100, lr=2.0)
    rates = [search.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.4) and rates[4] == rates[75] == pytest.approx(2.0)
    assert rates[99] == pytest.approx(1 - math.cos(math.pi * 0.04))
    assert (rates[87] + rates[88]) / 2 == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", BACKENDS)
def test_images_are_inverted_as_if_alone(kind: str) -> None:
    model = double(kind)
    with torch.no_grad():
        images = model.synthesis(drawn(model)[:2])
    search = Inversion(steps=4)
    both = search(model, images, IDS[:2], STREAM)
    alone = search(model, images[1:], IDS[1:2], STREAM)
    torch.testing.assert_close(both[1:], alone)


def test_settings_have_an_effect() -> None:
    model = double("stylegan2")
    with torch.no_grad():
        images = model.synthesis(drawn(model)[:1])

    def found(distance: Any = None, **settings: Any) -> Tensor:
        return Inversion(steps=8, **settings)(model, images, IDS[:1], STREAM, distance)

    def brightness(x: Tensor, y: Tensor) -> Tensor:
        return (x.mean(dim=(1, 2, 3)) - y.mean(dim=(1, 2, 3))).square()

    plain = found()
    torch.testing.assert_close(found(brightness, features=0.0), plain)
    others = [found(explore=0.0), found(lr=0.2), found(pixels=2.0, explore=1.0), found(brightness, features=9.0)]
    assert all((other - plain).abs().max() > 1e-4 for other in others)
    for setting in ({"steps": 0}, {"lr": 0.0}, {"explore": -1.0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            Inversion(**setting)  # type: ignore[arg-type]
