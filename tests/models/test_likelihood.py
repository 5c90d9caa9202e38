"""Bits per dimension and their moments."""

import math

import pytest
import torch

from tests.toys.flow_objectives import PixelGaussian, bits, context, pixel_splits
from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.likelihood import Moments, bits_per_dim, bits_per_dim_of


def test_bits_per_dim_is_minus_log2_of_the_density_over_the_dimensions():
    """-log2 N(x; 10, 2^2) at x = 12.5: (1.25^2 / 2 + ln 2 + ln(2 pi) / 2) / ln 2 = 3.4529 bits, over one dimension."""
    batch = pixel_splits([12, 9], [1, 2])["forget"].batch(torch.tensor([0, 1]))
    found = bits_per_dim(PixelGaussian(), batch, Randomness(0))
    assert found.tolist() == pytest.approx([bits(12), bits(9)], rel=1e-6)
    assert found[0].item() == pytest.approx(3.4529, abs=1e-4)


def test_draws_are_averaged_and_draws_of_one_stream_are_shared_by_models():
    """The mean of k draws has a k-th of the variance; two models with mean 10 and 10 + d differ, draw by draw, by
    ((v - 10)^2 - (v - 10 - d)^2) / (8 ln 2) = (2 d (v - 10) - d^2) / (8 ln 2): linear in v, so a zero difference of
    v would show in it.
    """
    splits = pixel_splits([10] * 400, [1, 2])
    batch = splits["forget"].batch(splits["forget"].ids)
    model, moved = PixelGaussian(noise=True), PixelGaussian(mean=11.0, noise=True)
    one, many = bits_per_dim(model, batch, Randomness(0)), bits_per_dim(model, batch, Randomness(0), draws=16)
    assert 8 < (one.var() / many.var()).item() < 32
    noise = Randomness(0).child("draw0").uniform(batch["id"], (), torch.float64)
    expected = (2 * noise - 1) / (8 * math.log(2))
    assert torch.allclose(one - bits_per_dim(moved, batch, Randomness(0)), expected, atol=1e-9)
    other = bits_per_dim(moved, batch, Randomness(1))
    assert not torch.allclose(one - other, expected, atol=1e-3), "another stream must draw other noise"


def test_many_items_give_what_one_batch_gives_without_gradient():
    splits = pixel_splits(list(range(20)), [1, 2])
    here, model = context(splits), PixelGaussian(noise=True)
    ids = splits["forget"].ids.flip(0)
    found = bits_per_dim_of(model, splits["forget"].batch, ids, here.randomness, 3, lambda f, i: map_ids(f, i, 7))
    expected = bits_per_dim(model, splits["forget"].batch(ids), here.randomness, 3)
    assert torch.equal(found, expected.detach()) and not found.requires_grad and expected.requires_grad


def test_moments_are_the_sample_mean_and_standard_deviation():
    moments = Moments.of(torch.tensor([1.0, 2.0, 3.0]))
    assert (moments.mean, moments.std) == (2.0, 1.0)
    assert moments.z(torch.tensor([4.0, 0.5])).tolist() == [2.0, -1.5]


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0]])
def test_a_spread_that_is_zero_or_unknown_is_refused(values):
    with pytest.raises(RecipeError, match="at least two items that differ"):
        Moments.of(torch.tensor(values))
