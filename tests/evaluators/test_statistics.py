"""Ranks, areas and distances against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import mannwhitneyu
from torch import Tensor

from unlearn.evaluators.statistics import auc, frechet, kernel_distance, placement, share_ci95

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def hits(count: int, n: int) -> Tensor:
    return torch.arange(n) < count


def exact_gaussian(n: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Return n points whose empirical mean and covariance (n - 1) are exactly those given: whiten, then colour."""
    raw = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    raw -= raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.atleast_2d(torch.cov(raw.T)))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_placement_counts_ties_half() -> None:
    """Of (1, 2, 2, 3): below 2 is one and two tie, (1 + 2 / 2) / 4 = 1/2; 0 is below all, 4 above all."""
    assert placement(doubles(2, 0, 4, 3), doubles(3, 2, 1, 2)).tolist() == [0.5, 0, 1, 0.875]


def test_placement_of_the_unknown_is_unknown() -> None:
    assert placement(doubles(math.nan, 1), doubles(0, 2)).isnan().tolist() == [True, False]
    assert placement(doubles(1), doubles(0, math.nan)).isnan().all()


def test_auc_of_identical_lists_is_a_half_and_of_separated_lists_one() -> None:
    same = doubles(1, 2, 3, 4)
    assert auc(same, same)[0] == 0.5
    assert auc(same + 10, same)[0] == 1
    assert auc(same, same + 10)[0] == 0


def test_auc_with_ties() -> None:
    """Pairs of (2, 3) and (1, 2): 2 > 1, 2 = 2, 3 > 1, 3 > 2, hence (3 + 1/2) / 4."""
    assert auc(doubles(2, 3), doubles(1, 2))[0] == 0.875


@given(SCORES, SCORES)
def test_auc_is_the_mann_whitney_statistic(a: list[float], b: list[float]) -> None:
    found, ci95 = auc(doubles(*a), doubles(*b))
    assert found == pytest.approx(mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    assert found + auc(doubles(*b), doubles(*a))[0] == pytest.approx(1)
    assert ci95 is None or 0 <= ci95[0] <= found + 1e-12 <= ci95[1] + 2e-12 <= 1 + 3e-12


def test_delong_interval_by_hand() -> None:
    """Members (1, 3), others (0, 2): placements of members 1/2 and 1, of others 1 and 1/2; each variance 1/8.

    AUC = 3/4, variance (1/8) / 2 + (1/8) / 2 = 1/8; the upper end is cut at 1.
    """
    found, ci95 = auc(doubles(1, 3), doubles(0, 2))
    assert found == 0.75
    assert ci95 == pytest.approx((0.75 - 1.959964 * math.sqrt(1 / 8), 1))


def test_delong_interval_holds_the_truth() -> None:
    """N(1, 1) against N(0, 1): AUC = Phi(1 / sqrt 2) = 0.7602. Of 300 intervals about 285 hold it."""
    generator = torch.Generator().manual_seed(0)
    truth, hits = 0.7602, 0
    for _ in range(300):
        a, b = torch.randn(2, 60, dtype=torch.float64, generator=generator)
        ci95 = auc(a + 1, b)[1]
        hits += ci95 is not None and ci95[0] <= truth <= ci95[1]
    assert 270 <= hits <= 297


def test_auc_of_one_item_has_no_interval() -> None:
    assert auc(doubles(1), doubles(0, 2))[1] is None


def test_frechet_of_diagonal_gaussians() -> None:
    """Diagonal covariances commute: |m - n|^2 + sum (a_i - b_i)^2 with a, b the standard deviations.

    m - n = (3, 4): 25. Deviations (1, 2) and (2, 5): 1 + 9. Together 35.
    """
    a = exact_gaussian(200, doubles(3, 4), torch.diag(doubles(1, 4)), seed=1)
    b = exact_gaussian(300, doubles(0, 0), torch.diag(doubles(4, 25)), seed=2)
    assert frechet(a, b) == pytest.approx(35, rel=1e-9)
    assert frechet(b, a) == pytest.approx(35, rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """Against the textbook form with scipy's matrix square root of the (unsymmetric) product."""
    first = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.9], [-0.9, 3.0]], dtype=torch.float64)
    assert not torch.allclose(first @ second, second @ first)
    a, b = exact_gaussian(100, doubles(0, 1), first, 3), exact_gaussian(100, doubles(0, 0), second, 4)
    expected = 1 + (first + second).trace().item() - 2 * sqrtm((first @ second).numpy()).trace().real
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_flat_features() -> None:
    """A feature that never fires makes the covariances singular; the distance is that of the others."""
    a = exact_gaussian(100, doubles(1), doubles(1)[None], 5)
    flat = torch.zeros(100, 3, dtype=torch.float64)
    assert frechet(torch.cat((a, flat), 1), torch.cat((a + 2, flat), 1)) == pytest.approx(4)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_broken_features_is_unknown() -> None:
    assert math.isnan(frechet(torch.full((5, 2), math.nan), torch.randn(5, 2)))


def test_kernel_distance_by_hand() -> None:
    """D = 1, a = (0, 1), b = (0, 2), k = (x y + 1)^3.

    Within a: k(0, 1) = 1; within b: k(0, 2) = 1; across: 1, 1, 1, 27, mean 7.5. Hence 1 + 1 - 15 = -13: unbiased
    estimates may be negative.
    """
    assert kernel_distance(doubles(0, 1)[:, None], doubles(0, 2)[:, None])[0] == pytest.approx(-13)


def test_kernel_distance_of_one_distribution_is_zero_and_of_two_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, 4, dtype=torch.float64, generator=generator)
    value, (low, high) = kernel_distance(a, b)
    assert low < 0 < high
    assert abs(value) < 0.05
    shifted, (low, _) = kernel_distance(a, b + 0.5)
    assert shifted > 0.2
    assert low > 0


def test_kernel_interval_is_the_spread_over_repetitions() -> None:
    """Away from equality the U-statistic is normal: the half width is 1.96 standard deviations of repeated draws."""
    generator = torch.Generator().manual_seed(1)
    values, halves = [], []
    for _ in range(150):
        a, b = torch.randn(2, 80, 2, dtype=torch.float64, generator=generator)
        value, (low, high) = kernel_distance(a, b + 1)
        values.append(value)
        halves.append((high - low) / 2)
    expected = 1.959964 * torch.tensor(values).std().item()
    assert torch.tensor(halves).mean().item() == pytest.approx(expected, rel=0.2)


def test_wilson_interval_against_a_published_value() -> None:
    """0 of 10 and 5 of 10: (0, .2775) and (.2366, .7634), as tabulated for Wilson's score interval."""
    assert share_ci95(hits(0, 10))[1] == pytest.approx((0, 0.2775), abs=1e-4)
    assert share_ci95(hits(5, 10))[1] == pytest.approx((0.2366, 0.7634), abs=1e-4)
