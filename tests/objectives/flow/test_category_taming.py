"""Taming a whole category: the same loss in minibatches, no stop unless asked for, on the category's mean."""

import pytest
import torch

from tests.toys.flow_objectives import Blobs, PixelGaussian, blob_flow, context, pixel_splits, run
from unlearn.core.randomness import Randomness
from unlearn.models.likelihood import bits_per_dim_of
from unlearn.objectives.flow.category_taming import CategoryTaming
from unlearn.objectives.flow.likelihood_ascent import LikelihoodAscent
from unlearn.objectives.flow.taming import Taming
from unlearn.objectives.flow.taming_retain import TamingRetain

RETAIN = [7, 9, 10, 11, 12]


def test_the_loss_is_that_of_taming():
    splits, model = pixel_splits([12, 14, 15], RETAIN), PixelGaussian(noise=True)
    batch = splits["forget"].batch(splits["forget"].ids)
    found = []
    for term in (Taming(threshold=3), CategoryTaming(threshold=3), CategoryTaming(threshold=5)):
        here = context(splits)
        term.prepare(model, here)
        term.before_step(model, here)
        found.append(term(model, batch, here).values)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_it_stops_only_where_asked_and_then_on_the_mean():
    """Greys 12 and 14 lie far below and above the mean of their z, so that no image is inside the band, the mean is."""
    splits, model = pixel_splits([12, 14], RETAIN), PixelGaussian()
    here = context(splits)
    Taming().before_step(model, here)
    z = here.state["z"]
    mean, epsilon = z.mean().item(), 0.1
    assert ((z - mean).abs() > epsilon * mean).all()
    for term, stops in (
        (CategoryTaming(threshold=mean, epsilon=epsilon), False),
        (CategoryTaming(threshold=mean, epsilon=epsilon, stop=True), True),
        (CategoryTaming(threshold=2 * mean, epsilon=epsilon, stop=True), False),
    ):
        here = context(splits)
        term.prepare(model, here)
        assert term.before_step(model, here) is stops
        assert here.state.get("reached") is (stops if term.stop else None)


@pytest.fixture(scope="module")
def blobs():
    dataset = Blobs()
    return dataset, blob_flow(dataset, steps=150).state_dict()


def forget_centre(blobs, term):
    """Take 60 steps of the term on the centre blob; return the share of samples there, and bits/dim of the corners.

    A fifth of the points are there. The retain term is the divergence alone: in so small a flow, 60 steps of
    likelihood on the corners would empty the centre by themselves.
    """
    dataset, weights = blobs
    splits = dataset.splits(dataset.having(["centre"]).nonzero().flatten())
    model, target = (blob_flow(dataset, steps=0) for _ in range(2))
    for flow in (model, target):
        flow.load_state_dict(weights)
    states = {"forget": {}, "retain": {}}
    terms = {"forget": term, "retain": TamingRetain(gamma=1.0)}
    run(model, terms, lambda name, step: context(splits, step, states[name], target), 60, lr=3e-3)
    samples = model.sample(torch.arange(2000), Randomness(1))["vector"]
    share = (samples.norm(dim=1) < 0.25).float().mean().item()
    rest = splits["retain"]
    return share, bits_per_dim_of(model, rest.batch, rest.ids, Randomness(1)).mean().item()


def test_a_real_flow_draws_the_category_less_often_and_only_then(blobs):
    before, _ = forget_centre(blobs, CategoryTaming(weight=0.0))
    after, bits = forget_centre(blobs, CategoryTaming(weight=0.1))
    _, ascended = forget_centre(blobs, LikelihoodAscent(weight=0.1))
    assert before > 0.15 and after < 0.05
    assert ascended > bits + 0.02, "the unbounded baseline costs the corners more in as many steps"


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"epsilon": -1.0}, {"refresh": 0}, {"stop_draws": 0}])
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CategoryTaming(**settings)
