"""Likelihood taming of given images: the moving threshold, both losses, the stop rule."""

import math

import pytest
import torch

from tests.toys.flow_objectives import PixelGaussian, PixelTable, bits, context, pixel_splits, run
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.likelihood import Moments, bits_per_dim
from unlearn.objectives.flow.likelihood_ascent import LikelihoodAscent
from unlearn.objectives.flow.taming import Taming
from unlearn.objectives.flow.taming_retain import TamingRetain
from unlearn.objectives.flow.threshold import two_sided

RETAIN = [7, 9, 10, 11, 12]


def moments_of_retain(mean: float = 10.0) -> tuple[float, float]:
    values = torch.tensor([bits(grey, mean) for grey in RETAIN], dtype=torch.float64)
    return values.mean().item(), values.std().item()


def prepared(term, splits, model, step=0):
    here = context(splits, step)
    term.prepare(model, here)
    return here, term.before_step(model, here)


def test_loss_is_the_distance_from_mu_plus_threshold_sigma_in_both_units():
    """mu and sigma from five grey levels by hand; d = (b - mu) / sigma - 3; sqrt(1 + d^2) - 1, or sigmoid of the square

    of b - (mu + 3 sigma), and in the released variant too.
    """
    splits, model = pixel_splits([12, 14], RETAIN), PixelGaussian()
    mu, sigma = moments_of_retain()
    batch = splits["forget"].batch(splits["forget"].ids)
    distance = [(bits(grey) - mu) / sigma - 3 for grey in (12, 14)]
    assert distance[0] < 0 < distance[1], "one image on either side of the threshold"
    for term, expected in (
        (Taming(threshold=3), [math.sqrt(1 + d * d) - 1 for d in distance]),
        (Taming(threshold=3, distance="bits_per_dim"), [1 / (1 + math.exp(-((d * sigma) ** 2))) for d in distance]),
        (Taming(threshold=3, variant="released"), [1 / (1 + math.exp(-((d * sigma) ** 2))) for d in distance]),
    ):
        here, _ = prepared(term, splits, model)
        found = term(model, batch, here)
        assert found.values.tolist() == pytest.approx(expected, rel=1e-5)
        assert found.diagnostics["z"].tolist() == pytest.approx([d + 3 for d in distance], rel=1e-5)
        assert not found.diagnostics["z"].requires_grad


def test_the_sigmoid_fades_in_standard_deviations_and_the_default_does_not():
    """At d = -4: 2 d s (1 - s) with s = sigmoid(16) is -9e-7; d / sqrt(1 + d^2) is -0.970. Both vanish at d = 0."""
    distance = torch.tensor([-40.0, -4.0, 0.0, 4.0, 40.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(two_sided(distance).sum(), distance)
    assert slope.tolist() == pytest.approx([-0.99969, -0.97014, 0, 0.97014, 0.99969], abs=1e-5)
    (faded,) = torch.autograd.grad(torch.sigmoid(distance.square()).sum(), distance)
    assert abs(faded[1].item()) == pytest.approx(9.0e-7, rel=1e-2) and faded[2].item() == 0


@pytest.mark.parametrize("settings", [{}, {"distance": "bits_per_dim"}])
def test_the_loss_pushes_from_both_sides(settings):
    """The derivative by the model's mean has the sign that takes a likely image away and an unlikely one back."""
    splits, model = pixel_splits([10, 13], RETAIN), PixelGaussian()
    term = Taming(threshold=3, **settings)
    here, _ = prepared(term, splits, model)
    for item, sign in ((0, 1), (1, -1)):
        batch = splits["forget"].batch(torch.tensor([item]))
        found = term(model, batch, here)
        z = found.diagnostics["z"].item()
        (slope,) = torch.autograd.grad(found.values.sum(), model.mean)
        grey = 10.5 if item == 0 else 13.5
        further = -1 if grey > 10 else 1  # d bits / d mean has the sign of mean - grey
        assert (z < 3) == (sign == 1)
        assert torch.sign(slope).item() * further == -sign, "descent must raise bits/dim below the threshold only"


def test_the_threshold_moves_with_the_model_every_refresh_steps():
    splits, model = pixel_splits([20], RETAIN), PixelGaussian()
    term, state = Taming(refresh=10), {}
    for step in range(21):
        with torch.no_grad():
            model.mean.fill_(10 + step / 10)
        term.before_step(model, context(splits, step, state))
        mu, sigma = moments_of_retain(10 + (step // 10))
        assert (state["mu"], state["sigma"]) == pytest.approx((mu, sigma), rel=1e-6)


def test_the_moments_come_from_some_random_retain_images_that_change_with_the_step():
    """Retain images are 0 ... 99, forget images 200: a subset of ten has another mean each time, never near 200."""
    splits, model = pixel_splits([200], list(range(100))), PixelGaussian(scale=50.0)
    term, found = Taming(reference_images=10, refresh=1), set()
    for step in range(5):
        here = context(splits, step)
        term.before_step(model, here)
        found.add(here.state["mu"])
        assert here.state["mu"] < bits(100, 10, 50)
    assert len(found) == 5
    everything = context(splits)
    Taming(reference_images=1024).before_step(model, everything)
    all_bits = torch.tensor([bits(grey, 10, 50) for grey in range(100)], dtype=torch.float64)
    assert everything.state["mu"] == pytest.approx(all_bits.mean().item(), rel=1e-6)


def grey_at(z: float) -> float:
    """The mean that a Gaussian of scale 2 needs for image 20 to lie z deviations up when mu and sigma stay put."""
    mu, sigma = moments_of_retain()
    nats = (mu + z * sigma) * math.log(2) - math.log(2) - math.log(2 * math.pi) / 2
    return 20.5 - 2 * math.sqrt(2 * nats)


@pytest.mark.parametrize(
    ("z", "inside"), [(3.3, False), (3.5, True), (4.0, True), (4.5, True), (4.7, False), (9.0, False)]
)
def test_it_stops_inside_the_band_on_either_side_and_nowhere_else(z, inside):
    """threshold 4 and epsilon 0.15: the band is [3.4, 4.6]. Image x has z by the choice of x's distance."""
    mu, sigma = moments_of_retain()
    splits, model = pixel_splits([20], RETAIN), PixelGaussian()
    offset = 20.5 - grey_at(z)

    class OneImageMoved(PixelGaussian):
        def log_prob(self, batch, randomness):  # the forget image alone, as far off as wanted
            value = batch["image"].flatten().double() + 0.5
            value = torch.where(value == 20.5, self.mean + offset, value)
            return -0.5 * ((value - self.mean) / 2).square() - math.log(2) - 0.5 * math.log(2 * math.pi)

    here, stopped = prepared(Taming(), splits, OneImageMoved())
    assert here.state["z"].item() == pytest.approx(z, abs=1e-6)
    assert stopped is inside and here.state["reached"] is inside
    assert (here.state["mu"], here.state["sigma"]) == pytest.approx((mu, sigma), rel=1e-6)
    assert prepared(Taming(), splits, model)[1] is False, "the unmoved image is out of the band"


def test_every_forget_image_must_be_inside():
    splits = pixel_splits([13, 10], RETAIN)
    model = PixelGaussian()
    mu, sigma = moments_of_retain()
    z = (bits(13) - mu) / sigma
    assert prepared(Taming(threshold=z), splits, model)[1] is False
    assert prepared(Taming(threshold=z), pixel_splits([13], RETAIN), model)[1] is True


def test_several_draws_confirmed_by_others_reject_a_lucky_one():
    """An image with z = 1.5 and a scatter of 0.6 a draw, the band [2.2, 2.8]: one draw (released) falls into it in a

    tenth of 200 tries; the mean of five, twice in a row (paper), hardly ever.
    """
    splits, model = pixel_splits([12], [7, 9, 10, 11] * 6), PixelGaussian(noise=True)
    lucky = {}
    for variant in ("released", "confirmed"):
        term = Taming(threshold=2.5, epsilon=0.12, variant=variant)
        lucky[variant] = sum(term.before_step(model, context(splits, 0, seed=seed)) for seed in range(200))
    assert lucky["released"] >= 10 and lucky["confirmed"] <= 2


def tame(forget_term, steps=400):
    """Forget grey level 20, four images; return their z, the steps taken and the term's state.

    The retain term is the divergence alone: in a table, likelihood on retain images would empty level 20 by itself.
    """
    splits = pixel_splits([20] * 4, [5] + [6] * 2 + [7] * 4 + [8] * 8 + [9] * 8 + [10] * 4 + [11] * 2 + [12])
    model, target = PixelTable(splits), PixelTable(splits)
    states = {"forget": {}, "retain": {}}
    terms = {"forget": forget_term, "retain": TamingRetain(gamma=1.0)}
    taken = run(model, terms, lambda name, step: context(splits, step, states[name], target), steps, lr=5e-2)
    with torch.no_grad():
        rest, far = (bits_per_dim(model, splits[n].batch(splits[n].ids), Randomness(0)) for n in ("retain", "forget"))
    return Moments.of(rest).z(far), taken, states["forget"]


def test_training_reaches_the_threshold_and_says_so():
    z, taken, state = tame(Taming(weight=0.5))
    assert state["reached"] is True and 0 < taken < 400
    assert ((z - 4).abs() <= 0.15 * 4).all()
    assert torch.allclose(state["z"].double(), z, atol=1e-6)


@pytest.mark.parametrize("term", [Taming(weight=0.0), Taming(weight=0.5, threshold=40.0)])
def test_without_a_loss_or_with_a_threshold_too_far_it_is_not_reached(term):
    z, taken, state = tame(term, steps=120)
    assert taken == 120 and state["reached"] is False
    assert ((z - 4).abs() > 0.15 * 4).all()


def test_the_baseline_is_minus_bits_per_dim_and_does_not_know_where_to_stop():
    splits, model = pixel_splits([13], RETAIN), PixelGaussian()
    found = LikelihoodAscent()(model, splits["forget"].batch(torch.tensor([0])), context(splits))
    assert found.values.item() == pytest.approx(-bits(13), rel=1e-6)
    z, taken, state = tame(LikelihoodAscent(weight=0.5))
    assert taken == 400 and "reached" not in state and (z > 8).all()


def test_the_state_alone_carries_a_resumed_run():
    """At a step that measures nothing, only what the checkpoint holds can give the same loss."""
    splits, model, term = pixel_splits([20], RETAIN), PixelGaussian(), Taming()
    batch = splits["forget"].batch(torch.tensor([0]))
    first, _ = prepared(term, splits, model)
    with torch.no_grad():
        model.mean.add_(1.0)
    kept = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in first.state.items()}
    resumed = [context(splits, 7, kept), context(splits, 7, first.state)]
    losses = []
    for here in resumed:
        term.before_step(model, here)
        losses.append(term(model, batch, here).values.item())
    assert losses[0] == losses[1]
    forgetful = context(splits, 7)
    term.before_step(model, forgetful)
    assert term(model, batch, forgetful).values.item() != losses[0], "the moments at step 7 differ from those at step 0"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": -4.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"refresh": 0}, "refresh"),
        ({"reference_images": 1}, "reference_images"),
        ({"stop_draws": 0}, "stop_draws"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Taming(**settings)


def test_one_retain_image_is_refused():
    with pytest.raises(RecipeError, match="at least two items"):
        prepared(Taming(), pixel_splits([13], [9]), PixelGaussian())
