"""Closed-form statistics that evaluators share: intervals, ranks, areas and distances, in float64."""

import math

import torch
from torch import Tensor

from unlearn.core.intervals import t_half_width
from unlearn.core.randomness import Randomness

Z95 = 1.959964
"""Half-width of a normal 95 % interval in standard errors."""

Interval = tuple[float, float] | None
"""Lower and upper end, None where there is no interval."""


def mean_ci95(values: Tensor, within: tuple[float, float] | None = None) -> tuple[float, Interval]:
    """Return mean and Student-t 95 % interval of values (n,), cut to a range; no interval below two values."""
    mean = values.double().mean().item()
    if len(values) < 2:
        return mean, None
    half = t_half_width(len(values), values.double().std().item())
    if within is None:
        return mean, (mean - half, mean + half)
    return mean, (max(within[0], mean - half), min(within[1], mean + half))


def share_ci95(count: int, n: int) -> tuple[float, tuple[float, float]]:
    """Return count / n and its Wilson 95 % interval."""
    z2 = Z95**2
    share = count / n
    # Wilson 1927: the shares p with |share - p| = z sqrt(p (1 - p) / n), solved for p; so the interval has
    # a width also at 0 and n hits
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return share, (max(0.0, centre - half), min(1.0, centre + half))


def placement(values: Tensor, reference: Tensor) -> Tensor:
    """Return the share of reference values (m,) below each value (n,), a tie counting half; nan where unknown."""
    if reference.isnan().any():
        return torch.full_like(values, torch.nan, dtype=torch.float64)
    ordered = reference.sort().values
    # the two counts differ by the ties, so that their mean counts half of them
    below = torch.searchsorted(ordered, values, side="left")
    up_to = torch.searchsorted(ordered, values, side="right")
    return torch.where(values.isnan(), torch.nan, (below + up_to).double() / (2 * len(reference)))


def auc(members: Tensor, others: Tensor) -> tuple[float, Interval]:
    """Return the probability that a member (m,) scores above a non-member (n,), ties half, and its 95 % interval.

    The interval is normal with DeLong's variance, cut at 0 and 1; None where a side has fewer than two, and where
    the two sides do not mix at all (the variance is then 0, whatever their sizes).

    Reference:
        DeLong, DeLong and Clarke-Pearson, Comparing the Areas under Two or More Correlated ROC Curves, 1988.
    """
    of_members = placement(members, others)
    value = of_members.mean().item()
    if min(len(members), len(others)) < 2 or math.isnan(value):
        return value, None
    of_others = 1 - placement(others, members)
    # DeLong: the two placements are the projections of the Mann-Whitney statistic on members and on non-members
    half = Z95 * math.sqrt(of_members.var().item() / len(members) + of_others.var().item() / len(others))
    if half == 0:
        return value, None
    return value, (max(0.0, value - half), min(1.0, value + half))


def auc_change(subject: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> tuple[float, Interval]:
    """Return (A - A_0) / A_0 with A and A_0 the AUCs (``auc``) of two models over the same items, and its interval.

    Each model has its scores of the members (m,) and of the non-members (n,). The interval is normal; its variance is
    that of the linearised ratio, with DeLong's covariance of the two AUCs, as they share their items. nan where A_0 is
    0; no interval below two items per side, or where the variance is 0.
    """
    a, a_0 = (placement(members, others).mean().item() for members, others in (subject, reference))
    if a_0 == 0 or math.isnan(a) or math.isnan(a_0):
        return math.nan, None
    value, variance = (a - a_0) / a_0, 0.0
    for side in (0, 1):
        if len(subject[side]) < 2:
            return value, None
        own, other = (placement(scores[side], scores[1 - side]) for scores in (subject, reference))
        variance += ((own - a / a_0 * other) / a_0).var().item() / len(own)  # signs of a side cancel in the square
    half = Z95 * math.sqrt(variance)
    return value, (value - half, value + half) if half else None


def ratio_of_shares(a: tuple[int, int], b: tuple[int, int]) -> tuple[float, Interval]:
    """Return the ratio of two shares, each (count, n), and a 95 % interval; nan and none where the second is 0.

    The interval takes Wilson's of both shares and treats them as independent, which is conservative for shares over
    the same noise. There is none where the second's interval reaches twice its share.

    Reference:
        Donner and Zou, Closed-form confidence intervals for functions of the normal mean and standard deviation, 2012
        (MOVER for a ratio).
    """
    if b[0] == 0:
        return math.nan, None
    # the ratios r for which the interval of first - r second, by Wilson's of both, contains 0
    (first, (low_a, high_a)), (second, (low_b, high_b)) = share_ci95(*a), share_ci95(*b)
    if low_b <= 0 or high_b >= 2 * second:
        return first / second, None
    product = first * second
    lower = product**2 - low_a * high_b * (2 * first - low_a) * (2 * second - high_b)
    upper = product**2 - high_a * low_b * (2 * first - high_a) * (2 * second - low_b)
    return first / second, (
        max(0.0, (product - math.sqrt(max(0.0, lower))) / (high_b * (2 * second - high_b))),
        (product + math.sqrt(max(0.0, upper))) / (low_b * (2 * second - low_b)),
    )


def frechet(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to features a (n, D) and b (m, D).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), with eigenvalues that rounding pushes below zero set
    to zero. The estimate is biased upwards: two small samples of one distribution have a positive distance.

    Reference:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, eq. 6. arXiv:1706.08500
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.atleast_2d(torch.cov(a.T)), torch.atleast_2d(torch.cov(b.T))
    if not (cov_a.isfinite().all() and cov_b.isfinite().all()):
        return math.nan
    values, vectors = torch.linalg.eigh(cov_a)
    # tr (AB)^1/2 by the symmetric A^1/2 B A^1/2, which has the same eigenvalues as AB and real ones
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    squared = (a.mean(0) - b.mean(0)).square().sum()
    distance: float = (squared + cov_a.trace() + cov_b.trace() - 2 * overlap).item()
    return max(0.0, distance)


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, tuple[float, float]]:
    """Return the unbiased squared MMD between features a (n, D) and b (m, D), and a normal 95 % interval.

    The kernel is (x . y / D + 1)^3. The mean is over all pairs, where the paper averages over random subsets: the same
    expectation, less noise. The variance is that of the U-statistic's projections on single items.

    Reference:
        Binkowski et al., Demystifying MMD GANs, 2018, section 4. arXiv:1801.01401
    """
    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    cross = _kernel(a, b)
    # pairs of an item with itself are left out: they would bias the estimate upwards
    own_a = (_kernel(a, a).sum(1) - _kernel_diagonal(a)) / (n - 1)
    own_b = (_kernel(b, b).sum(1) - _kernel_diagonal(b)) / (m - 1)
    value = (own_a.mean() + own_b.mean() - 2 * cross.mean()).item()
    # the variance of 2 (own - cross), the projection on one item, over the sample size, for either sample
    variance = 4 * ((own_a - cross.mean(1)).var() / n + (own_b - cross.mean(0)).var() / m).item()
    half = Z95 * math.sqrt(variance)
    return value, (value - half, value + half)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1).pow(3)


def _kernel_diagonal(a: Tensor) -> Tensor:
    return (a.square().sum(1) / a.shape[1] + 1).pow(3)


def frechet_ci95(a: Tensor, b: Tensor, randomness: Randomness, bootstraps: int) -> tuple[float, Interval]:
    """Return ``frechet`` of features a (n, D) and b (m, D), and its 95 % interval from resamples of both sides.

    The interval is normal, with the resamples' standard deviation: their quantiles are biased, as each resample
    has fewer distinct items.
    """
    rows = torch.arange(bootstraps)
    of_a = randomness.child("bootstrap a").integers(rows, len(a), (len(a),))
    of_b = randomness.child("bootstrap b").integers(rows, len(b), (len(b),))
    found = [frechet(a[i], b[j]) for i, j in zip(of_a, of_b, strict=True)]
    value, half = frechet(a, b), Z95 * torch.tensor(found, dtype=torch.float64).std().item()
    return value, (max(0.0, value - half), value + half)


def inside_manifold(points: Tensor, of: Tensor, k: int) -> Tensor:
    """Return whether each point (n, D) lies in the manifold of others (m, D), (n,) bool.

    The manifold is the union of balls around the points ``of``, each with the distance to its k-th nearest neighbour
    among them as radius.

    Reference:
        Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, eq. 1.
        arXiv:1904.06991
    """
    of, points = of.double(), points.double()
    # no matrix product: it loses the digits of small distances; a point is no neighbour of itself
    own = torch.cdist(of, of, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    radii = own.kthvalue(k, dim=1).values
    apart = torch.cdist(points, of, compute_mode="donot_use_mm_for_euclid_dist")
    return (apart <= radii).any(dim=1)
