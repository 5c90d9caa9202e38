"""Directions among latents: planted ones are found, and latents are brought to the border and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys.gan import Bench, small_gan, write_script
from tests.toys.lively_gan import lively, splits_of
from unlearn.core.errors import RecipeError
from unlearn.models.feature_extractors.embedders import attribute_net
from unlearn.objectives.gan.attribute import Attribute
from unlearn.objectives.gan.directions import hyperplane, mean_difference, prior
from unlearn.objectives.gan.forget_classifier import ForgetClassifier
from unlearn.objectives.gan.global_preservation import GlobalPreservation
from unlearn.objectives.gan.latent_projection import LatentProjection
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss

PIXELS = PerceptualLoss(pixels=1.0, norm="l2", features=0.0, perceptual=0.0, identity=0.0)


class Bright(nn.Module):
    """Says that an image is bright: the logit is 50 (mean - border)."""

    def __init__(self, border: float) -> None:
        super().__init__()
        self.border = border

    def forward(self, images: Tensor) -> Tensor:
        return 50 * (images.mean(dim=(1, 2, 3)) - self.border)


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TorchScript classifier of bright images, about half of what the small generator draws."""
    model = small_gan()
    with torch.no_grad():
        border = float(model.synthesis(prior(model, torch.arange(200), "w", 0)).mean(dim=(1, 2, 3)).median())
    path = tmp_path_factory.mktemp("judge") / "bright.pt"
    write_script(Bright(border), path)
    return str(path)


def test_the_directions_in_closed_form() -> None:
    """Means (2, 0) and (0, 0): e = (1, 0), half-way at 1. The plane between 0 and 1 on the first axis."""
    latents = torch.tensor([[2.0, 1.0], [2.0, -1.0], [0.0, 3.0], [0.0, -3.0]], dtype=torch.float64)
    axis, border = mean_difference(latents, torch.tensor([True, True, False, False]))
    torch.testing.assert_close(axis, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert border == pytest.approx(1.0)
    wide = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axis, border = hyperplane(wide, wide[:, 1] > 0.3)
    assert axis[1] > 0.98 and border == pytest.approx(0.3, abs=0.1) and axis.norm() == pytest.approx(1.0)


@pytest.mark.parametrize(("space", "way"), [("z", "mean_difference"), ("w", "hyperplane")])
def test_the_direction_tells_what_the_classifier_tells(space: str, way: str, bright: str, tmp_path: Path) -> None:
    """Projections beyond the border are mostly those of bright images."""
    term = LatentProjection(classifier=bright, samples=200, space=space, direction=way, likeness=PIXELS)
    bench = Bench(tmp_path, term)
    latents = prior(bench.target, torch.arange(200), space, 0)
    w = bench.target.mapping(latents) if space == "z" else latents
    with torch.no_grad():
        shown = ForgetClassifier(bright).probability(bench.target, bench.target.synthesis(w), bench.context()) > 0.5
    beyond = (latents @ bench.state["axis"] > bench.state["border"]) == shown
    assert 0.4 < shown.double().mean() < 0.6 and beyond.double().mean() > 0.7
    assert bench.state["axis"].norm() == pytest.approx(1.0)


def test_moon_by_hand(bright: str, tmp_path: Path) -> None:
    """z beyond t is drawn as z - (e . z - t) e, the others as themselves; brute force, one latent at a time."""
    term = LatentProjection(classifier=bright, samples=100, likeness=PIXELS, threshold=0.2)
    bench = Bench(tmp_path, term).moved()
    context, batch = bench.context(step=4), {"id": torch.arange(12)}
    found = term(bench.model, batch, context)
    axis = bench.state["axis"]
    far = []
    for row in range(12):
        z = bench.target.latent(torch.tensor([row]), context.randomness)
        past = float(z[0] @ axis) - 0.2
        far.append(float(past > 0))
        aim = z - past * axis if past > 0 else z
        there = bench.target.synthesis(bench.target.mapping(aim))
        wanted = (bench.model.synthesis(bench.model.mapping(z)) - there).square().mean()
        torch.testing.assert_close(found.values[row], wanted)
    assert found.diagnostics["beyond"].tolist() == far and 0 < sum(far) < 12


def test_depth_and_draws_have_an_effect(bright: str, tmp_path: Path) -> None:
    """depth 1 brings latents to the mean of those without; ``beyond`` draws none of the others."""
    deep = Bench(tmp_path / "a", Attribute(classifier=bright, samples=200, likeness=PIXELS))
    z = prior(deep.target, torch.arange(200), "w", 0).detach()
    with torch.no_grad():
        shown = ForgetClassifier(bright).probability(deep.target, deep.target.synthesis(z), deep.context()) > 0.5
        moved = deep.objective.moved(z, deep.context())
    axis = deep.state["axis"]
    past = z @ axis > deep.state["border"]
    torch.testing.assert_close(moved[~past], z[~past])
    mean = float((z[~shown] @ axis).mean())
    torch.testing.assert_close(moved[past] @ axis, torch.full((int(past.sum()),), mean, dtype=torch.float64))
    only = Bench(tmp_path / "b", LatentProjection(classifier=bright, samples=60, draws="beyond", likeness=PIXELS))
    assert only.values().diagnostics["beyond"].tolist() == [1.0, 1.0]
    assert len(only.state["beyond"]) < 60


def test_training_takes_the_feature_away(bright: str, tmp_path: Path) -> None:
    """The share of bright images falls; the control, which takes no steps, leaves it."""
    shares = []
    for number, steps in enumerate((60, 0)):
        term = LatentProjection(
            classifier=bright,
            samples=200,
            space="w",
            direction="hyperplane",
            depth=2.0,
            likeness=PIXELS,
        )
        bench = Bench(tmp_path / str(number), term)
        optimizer = torch.optim.Adam([p for p in bench.model.parameters() if p.requires_grad], lr=5e-3)
        for step in range(steps):
            loss = term(bench.model, {"id": torch.arange(8)}, bench.context(step)).values.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            images = bench.model.synthesis(prior(bench.target, torch.arange(300, 400), "w", 0))
            shares.append(
                float(
                    (ForgetClassifier(bright).probability(bench.model, images, bench.context()) > 0.5).double().mean()
                )
            )
    assert shares[0] < 0.6 * shares[1]


@pytest.mark.parametrize("draws", ["all", "beyond"])
def test_several_latents_an_item(draws: str, bright: str, tmp_path: Path) -> None:
    """The mean over the draws of their streams, of which the first is that of one latent an item; all differ."""
    terms = [
        LatentProjection(classifier=bright, samples=60, draws=draws, likeness=PIXELS, per_item=number)
        for number in (1, 3)
    ]
    one, three = (Bench(tmp_path / str(term.per_item), term).moved() for term in terms)
    stream = three.context().randomness
    draws_of = [stream, stream.child("draw 1"), stream.child("draw 2")]
    parts = [terms[0](one.model, one.batch(), one.context(randomness=draw)).values for draw in draws_of]
    found = three.values()
    torch.testing.assert_close(found.values, torch.stack(parts).mean(dim=0))
    assert found.values.shape == (2,) and len(torch.stack(parts).unique()) == 6


@pytest.mark.parametrize("draws", ["all", "beyond"])
def test_a_border_that_no_latent_reaches_is_refused(draws: str, bright: str, tmp_path: Path) -> None:
    term = LatentProjection(classifier=bright, samples=40, threshold=1e9, draws=draws, likeness=PIXELS)
    with pytest.raises(RecipeError, match=r"threshold is 1e\+09.*Type threshold=null"):
        Bench(tmp_path, term)


def test_attributes_of_faces_are_judged_by_name(tmp_path: Path) -> None:
    """The same net as ``attribute_share`` asks; identities are only numbers, so that a label must be given."""
    bench = Bench(tmp_path, GlobalPreservation(pool=2, likeness=PIXELS), "dcgan")
    assert bench.target.image_shape == (3, 64, 64)
    w = bench.target.mapping(prior(bench.target, torch.arange(6), "z", 0))
    with torch.no_grad():
        images = bench.target.synthesis(w)
        shown = bench.target.images(images).float() * (2 / 255) - 1
        wanted = attribute_net("mobile_face", (3, 64, 64))(shown)
        for place, label in enumerate(("looks_male", "looks_over_40")):
            found = ForgetClassifier("mobile_face", [label]).probability(bench.target, images, bench.context())
            torch.testing.assert_close(found, wanted[:, place].double())
    identities = splits_of(lively("dcgan"))
    Attribute(label=["looks_male"], likeness=PIXELS).check(identities, "forget")
    with pytest.raises(RecipeError, match=r"label is empty.*Type label=\[looks_male\]"):
        Attribute(likeness=PIXELS).check(identities, "forget")
    with pytest.raises(RecipeError, match=r"knows no 'looks_mal'\. Did you mean: looks_male"):
        Attribute(label=["looks_mal"], likeness=PIXELS).check(identities, "forget")


def test_a_framed_digit_is_judged_inside_of_its_frame() -> None:
    """A net of 8 x 8 pixels looks at the middle of 10 x 10 of them, whatever stands around."""
    images = torch.rand(3, 1, 10, 10) * 2 - 1
    inside = images[..., 1:9, 1:9]
    net = attribute_net(None, (1, 10, 10), frame=1)
    torch.testing.assert_close(net(images), attribute_net("digitnet8", (1, 8, 8))(inside))
    with pytest.raises(RecipeError, match="No packaged attribute net"):
        attribute_net(None, (1, 10, 10))


def test_too_few_images_and_wrong_judges_are_refused(bright: str, tmp_path: Path) -> None:
    never = tmp_path / "never.pt"
    write_script(Bright(1e3), never)
    with pytest.raises(RecipeError, match=r"0 of 20 images.*Type more samples"):
        Bench(tmp_path / "n", LatentProjection(classifier=str(never), samples=20))
    splits: Any = Bench(tmp_path / "o", LatentProjection(classifier=bright, samples=40)).splits
    with pytest.raises(RecipeError, match="no such file"):
        LatentProjection(classifier="nowhere.pt").check(splits, "forget")
    with pytest.raises(RecipeError, match="knows no 'red'"):
        LatentProjection(classifier=bright, label=["red"]).check(splits, "forget")
    with pytest.raises(RecipeError, match="knows"):
        LatentProjection(classifier="digitnet8", label=["thre"]).check(splits, "forget")
    with pytest.raises(RecipeError, match=r"Type label=\[NAME\]"):
        LatentProjection().check(splits, "forget")
