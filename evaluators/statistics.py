"""Closed-form statistics that evaluators share: intervals, ranks, areas and distances, in float64."""

import math

import torch
from torch import Tensor

from unlearn.core.intervals import t_quantile
from unlearn.core.randomness import Randomness

Z95 = 1.959964
"""Half-width of a normal 95 % interval in standard errors."""

Interval = tuple[float, float] | None
"""Lower and upper end, None where there is no interval."""

Share = tuple[float, tuple[float, float]]
"""A share and its interval."""


def mean_ci95(
    values: Tensor, within: tuple[float, float] | None = None, clusters: Tensor | None = None
) -> tuple[float, Interval]:
    """Return the mean of values (n,) and its Student-t 95 % interval, cut to a range; no interval below two values.

    Items that share a source (a country, an author, a passage) vary together. Where ``clusters`` (n,) int64 names the
    source of each, the standard error is that of independent clusters, with clusters - 1 degrees of freedom.

    Reference:
        Miller, Adding Error Bars to Evals, 2024, eq. 4 (clustered standard errors). arXiv:2411.00640; with the factor
        G / (G - 1) of G clusters, so that clusters of one item give the ordinary interval.
    """
    mean = values.double().mean().item()
    if len(values) < 2:
        return mean, None
    error, count = mean_error(values, clusters)
    half = t_quantile(count - 1) * error
    if within is None:
        return mean, (mean - half, mean + half)
    return mean, (max(within[0], mean - half), min(within[1], mean + half))


def mean_error(values: Tensor, clusters: Tensor | None = None) -> tuple[float, int]:
    """Return the standard error of the mean of at least two values (n,), and how many clusters they come from."""
    values = values.double()
    sums = cluster_sums(values - values.mean(), clusters)
    count = len(sums)
    return math.sqrt(count / (count - 1) * sums.square().sum().item()) / len(values), count


def cluster_sums(values: Tensor, clusters: Tensor | None) -> Tensor:
    """Return the sum of values (n,) in each cluster, (G,).

    Where all items are of one cluster, that one is all that is asked about and its items are what varies, so each
    stands for itself, as it does without clusters.
    """
    if clusters is None:
        return values
    names, place = clusters.unique(return_inverse=True)
    if len(names) == 1:
        return values
    return values.new_zeros(len(names)).index_add_(0, place, values)


def share_ci95(hits: Tensor, clusters: Tensor | None = None) -> Share:
    """Return the share of hits (n,) bool and its Wilson 95 % interval.

    With ``clusters`` (n,) int64, n is replaced by the number of independent items with the same variance, and scaled
    by (z / t)^2 for the few clusters that the variance is known from; where no item or every item is a hit, and the
    variance unknown, each cluster counts as one item.

    Reference:
        Wilson, Probable inference, 1927. Korn and Graubard, Confidence intervals for proportions with small expected
        number of positive counts estimated from survey data, 1998 (the effective number).
    """
    n, share = len(hits), hits.double().mean().item()
    effective = float(n)
    if clusters is not None and (count := len(clusters.unique())) not in (1, n):
        error, _ = mean_error(hits, clusters)
        independent = share * (1 - share) / error**2 * (Z95 / t_quantile(count - 1)) ** 2 if error else math.inf
        effective = float(count) if share in (0, 1) else min(float(n), independent)
    return share, wilson(share, effective)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n items."""
    z2 = Z95**2
    # Wilson 1927: the shares p with |share - p| = z sqrt(p (1 - p) / n), solved for p; so the interval has
    # a width also at 0 and n hits
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def placement(values: Tensor, reference: Tensor) -> Tensor:
    """Return the share of reference values (m,) below each value (n,), a tie counting half; nan where unknown."""
    if reference.isnan().any():
        return torch.full_like(values, torch.nan, dtype=torch.float64)
    ordered = reference.sort().values
    # the two counts differ by the ties, so that their mean counts half of them
    below = torch.searchsorted(ordered, values, side="left")
    up_to = torch.searchsorted(ordered, values, side="right")
    return torch.where(values.isnan(), torch.nan, (below + up_to).double() / (2 * len(reference)))


Pair = tuple[Tensor, Tensor]
"""Values of members (m,) and of non-members (n,)."""


def auc(members: Tensor, others: Tensor, clusters: Pair | None = None) -> tuple[float, Interval]:
    """Return the probability that a member (m,) scores above a non-member (n,), ties half, and its 95 % interval.

    The interval is normal with DeLong's variance, cut at 0 and 1; None where a side has fewer than two, and where
    the two sides do not mix at all (the variance is then 0, whatever their sizes). With ``clusters``, int64 of both
    sides, the variance is that of independent clusters, with Student's t.

    Reference:
        DeLong, DeLong and Clarke-Pearson, Comparing the Areas under Two or More Correlated ROC Curves, 1988.
        Obuchowski, Nonparametric Analysis of Clustered ROC Curve Data, 1997.
    """
    value, moved = _auc_with_projections(members, others)
    half = _auc_half_width(moved, clusters)
    return value, (max(0.0, value - half), min(1.0, value + half)) if half else None


def detected(members: Tensor, others: Tensor, false_alarms: float = 0.01) -> Tensor:
    """Return which members (m,) score above all but a share of the others (n,), bool.

    Of fewer others than 1 / ``false_alarms`` none may score higher.
    """
    allowed = int(false_alarms * len(others))
    return members > others.sort(descending=True).values[allowed]


def auc_change(subject: Pair, reference: Pair, clusters: Pair | None = None) -> tuple[float, Interval]:
    """Return (A - A_0) / A_0 with A and A_0 the AUCs (``auc``) of two models over the same items, and its interval.

    The interval is that of the linearised ratio, with the covariance of the two AUCs, as they share their items. nan
    where A_0 is 0; no interval below two items per side, or where the variance is 0.
    """
    (a, moved), (a_0, moved_0) = _auc_with_projections(*subject), _auc_with_projections(*reference)
    if a_0 == 0 or math.isnan(a) or math.isnan(a_0):
        return math.nan, None
    value = (a - a_0) / a_0
    both = (moved[0] - a / a_0 * moved_0[0]) / a_0, (moved[1] - a / a_0 * moved_0[1]) / a_0
    half = _auc_half_width(both, clusters)
    return value, (value - half, value + half) if half else None


def auc_difference(subject: Pair, reference: Pair, clusters: Pair | None = None) -> tuple[float, Interval]:
    """Return A - A_0 with A and A_0 the AUCs (``auc``) of two models over the same items, and its interval."""
    (a, moved), (a_0, moved_0) = _auc_with_projections(*subject), _auc_with_projections(*reference)
    half = _auc_half_width((moved[0] - moved_0[0], moved[1] - moved_0[1]), clusters)
    return a - a_0, (max(-1.0, a - a_0 - half), min(1.0, a - a_0 + half)) if half else None


def _auc_with_projections(members: Tensor, others: Tensor) -> tuple[float, Pair]:
    """Return the AUC, and how far each member's and each other's part of it lies from their mean."""
    of_members, of_others = placement(members, others), 1 - placement(others, members)
    # DeLong: the two placements are the projections of the Mann-Whitney statistic on members and on non-members
    return of_members.mean().item(), (of_members - of_members.mean(), of_others - of_others.mean())


def _auc_half_width(moved: Pair, clusters: Pair | None) -> float:
    """Return the half-width of the interval of an AUC with these projections; 0 where there is none."""
    sizes = [len(side) for side in moved]
    if min(sizes) < 2 or any(side.isnan().any() for side in moved):
        return 0.0
    if clusters is None:
        return Z95 * math.sqrt(sum(side.var().item() / n for side, n in zip(moved, sizes, strict=True)))
    names, place = torch.cat(clusters).unique(return_inverse=True)
    sums = [
        side.new_zeros(len(names)).index_add_(0, own, side) / n
        for side, own, n in zip(moved, place.split(sizes), sizes, strict=True)
    ]
    counts = [len(own.unique()) for own in clusters]
    if min(counts) < 2:  # one source on a side is all that is asked about: its items are what varies
        return _auc_half_width(moved, None)
    variance = sum(count / (count - 1) * part.square().sum() for part, count in zip(sums, counts, strict=True))
    variance = variance + 2 * len(names) / (len(names) - 1) * (sums[0] * sums[1]).sum()  # clusters on both sides
    each_alone = counts == sizes
    factor = Z95 if each_alone else t_quantile(min(counts) - 1)
    return factor * math.sqrt(max(0.0, float(variance)))


def ratio_of_shares(a: Share, b: Share) -> tuple[float, Interval]:
    """Return the ratio of two shares, each with its interval, and a 95 % interval; nan and none where the second is 0.

    The interval takes those of both shares and treats them as independent, which is conservative for shares over
    the same noise. There is none where the second's interval reaches twice its share.

    Reference:
        Donner and Zou, Closed-form confidence intervals for functions of the normal mean and standard deviation, 2012
        (MOVER for a ratio).
    """
    # the ratios r for which the interval of first - r second, by those of both, contains 0
    (first, (low_a, high_a)), (second, (low_b, high_b)) = a, b
    if second == 0:
        return math.nan, None
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
