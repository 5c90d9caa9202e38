"""Debiasing: the controller that finds the shift, on a model for which the exact shift is known."""

import math

import pytest
import torch

from tests.toys.flow_objectives import DigitMixture, PixelGaussian, context, digit_splits, pixel_splits, run
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.objectives.flow.category_taming import CategoryTaming
from unlearn.objectives.flow.debias import Debias
from unlearn.objectives.flow.taming_retain import TamingRetain


def steer(shares, label="3", steps=400, **settings):
    """Debias the mixture of digits; return its share of the label, the steps taken and the state."""
    splits = digit_splits(label)
    dataset = splits["forget"].dataset
    model, target = DigitMixture(dataset), DigitMixture(dataset)
    states = {"forget": {}, "retain": {}}
    terms = {
        "forget": Debias(shares=shares, measure_every=10, samples=1000, gain=0.02, **settings),
        "retain": TamingRetain(gamma=1.0, weight=1e-3),
    }
    taken = run(model, terms, lambda name, step: context(splits, step, states[name], target), steps, lr=2e-2)
    return model.logits.softmax(0)[int(label)].item(), taken, states["forget"]


@pytest.mark.parametrize("asked", [0.3, 0.02])
def test_it_raises_and_lowers_a_share_to_what_was_asked(asked):
    """The mixture draws each digit with 0.1; the exact shift is -log(asked / 0.1) nats, here in bits/dim over sigma."""
    share, taken, state = steer({"3": asked})
    assert state["reached"] is True and taken < 400
    assert share == pytest.approx(asked, abs=0.03)
    assert state["shares"].item() == pytest.approx(asked, abs=0.02)
    assert math.copysign(1, state["shifts"].item()) == math.copysign(1, 0.1 - asked)


def test_without_weight_nothing_is_reached():
    share, taken, state = steer({"3": 0.3}, steps=60, weight=0.0)
    assert taken == 60 and state["reached"] is False
    assert share == pytest.approx(0.1, abs=0.03)


def test_the_loss_is_the_distance_of_the_shift_from_the_asked_one():
    """The mixture with logit a for the threes gives each three log p higher by about a - log(1 + (e^a - 1) / 10)."""
    splits = digit_splits("3")
    dataset = splits["forget"].dataset
    model, target = DigitMixture(dataset), DigitMixture(dataset)
    with torch.no_grad():
        model.logits[3] = 2.0
    here = context(splits, reference=target)
    term = Debias(shares={"3": 0.3}, samples=50)
    term.prepare(model, here)
    here.state["shifts"] = torch.tensor([0.25], dtype=torch.float64)
    found = term(model, splits["forget"].batch(splits["forget"].ids[:40]), here)
    nats = 2.0 - math.log(1 + (math.exp(2.0) - 1) / 10)
    shift = -nats / (64 * math.log(2) * here.state["sigma"])
    assert found.diagnostics["shift"].median().item() == pytest.approx(shift, rel=1e-3)
    distance = found.diagnostics["shift"] - 0.25
    assert torch.allclose(found.values, torch.sqrt(1 + distance.square()) - 1)


def test_the_controller_settles_where_the_share_is_right_and_not_with_its_sign_turned():
    """A model whose log share falls by k = 1.5 a deviation: the error shrinks by |1 - gain k| = 0.25 a measurement."""
    asked, slope = torch.tensor([0.3, 0.05], dtype=torch.float64), 1.5
    start = torch.tensor([0.1, 0.1], dtype=torch.float64)
    term = Debias(shares={"3": 0.3, "8": 0.05}, gain=0.5, samples=100_000)
    for sign, settles in ((1, True), (-1, False)):
        shifts = torch.zeros(2, dtype=torch.float64)
        for _ in range(8):
            found = start * torch.exp(-sign * slope * shifts)
            shifts = term.corrected(shifts, found, asked)
        assert torch.allclose(start * torch.exp(-sign * slope * shifts), asked, rtol=1e-2) is settles


def test_a_shift_stays_within_the_threshold_and_a_share_of_zero_is_finite():
    term = Debias(shares={"3": 0.3}, threshold=2.0, gain=1.0, samples=1000)
    none, all_of_it = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    asked, start = torch.tensor([0.3], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert term.corrected(start, none, asked).item() == -2.0, "log(0.001 / 0.301) = -5.7, held at -2"
    assert 0 < term.corrected(start, all_of_it, asked).item() == pytest.approx(math.log(1.001 / 0.301))


def test_one_measurement_within_the_tolerance_is_not_enough():
    splits = digit_splits("3")
    model = DigitMixture(splits["forget"].dataset)
    term, state = Debias(shares={"3": 0.1}, samples=1000, tolerance=0.05, measure_every=5), {}
    term.prepare(model, context(splits, 0, state))
    answers = [term.before_step(model, context(splits, step, state)) for step in range(6)]
    assert answers == [False] * 5 + [True]
    with torch.no_grad():
        model.logits[3] = 3.0
    assert term.before_step(model, context(splits, 10, state)) is False and state["within"] == 0


def test_the_paper_s_mode_is_category_taming_of_the_images_without_the_attribute():
    splits, model = pixel_splits([12, 14, 15], [7, 9, 10, 11, 12]), PixelGaussian()
    batch = splits["forget"].batch(splits["forget"].ids)
    found = []
    for term in (Debias(mode="exchanged", threshold=3), CategoryTaming(threshold=3)):
        here = context(splits)
        term.prepare(model, here)
        assert term.before_step(model, here) is False
        found.append(term(model, batch, here).values)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("shares", "label", "message"),
    [
        ({"11": 0.2}, "3", "'11' is no label"),
        ({"8": 0.2}, "3", "'8' is no label"),
        ({"3": 0.2}, "odd", "nothing about 1, 5, 7, 9"),
    ],
)
def test_labels_must_be_those_of_the_forget_images(shares, label, message):
    splits = digit_splits(label)
    with pytest.raises(RecipeError, match=message):
        Debias(shares=shares).prepare(DigitMixture(splits["forget"].dataset), context(splits))


def test_a_share_of_null_drops_a_label_that_a_base_recipe_names():
    term = Debias(shares={"1": 0.2, "3": None})
    splits = digit_splits("1")
    here = context(splits)
    term.prepare(DigitMixture(splits["forget"].dataset), here)
    assert term.asked == {"1": 0.2} and here.state["shifts"].shape == (1,)
    with pytest.raises(ValueError, match="shares"):
        Debias(shares={"3": None})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "shares"),
        ({"shares": {"3": 0.0}}, "shares"),
        ({"shares": {"3": 0.7, "8": 0.7}}, "shares"),
        ({"shares": {"3": 0.5}, "mode": "exchanged"}, "shares"),
        ({"shares": {"3": 0.5}, "gain": 0.0}, "gain"),
        ({"shares": {"3": 0.5}, "samples": 0}, "samples"),
        ({"shares": {"3": 0.5}, "tolerance": 1.0}, "tolerance"),
        ({"shares": {"3": 0.5}, "measure_every": 0}, "measure_every"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Debias(**settings)


def test_the_mixture_samples_what_its_logits_say():
    """The bench itself: the classifier names a tenth of each digit, or nearly all as threes once these dominate."""
    splits = digit_splits("3")
    model = DigitMixture(splits["forget"].dataset)
    term = Debias(shares={"3": 0.5}, samples=2000)
    here = context(splits)
    assert term.measured(model, here).item() == pytest.approx(0.1, abs=0.03)
    with torch.no_grad():
        model.logits[3] = 6.0
    assert term.measured(model, here).item() > 0.9
    assert torch.equal(model.sample(torch.arange(3), Randomness(1))["id"], torch.arange(3))
