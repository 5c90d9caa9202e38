"""Intervals of items that share a source, and differences between two models of the same items."""

import math

import pytest
import torch
from torch import Tensor

from tests.toys.scripted import evaluation_of
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.evaluators.base import Metric
from unlearn.evaluators.per_item import ItemValues, Separation
from unlearn.evaluators.restoration import bootstrap
from unlearn.evaluators.statistics import auc, auc_difference, mean_ci95, mean_error, share_ci95

DRAWS = 500


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=generator)


def test_the_clustered_error_by_hand() -> None:
    """Values 1, 3, 5, 7 in clusters (0, 0, 1, 1): residuals sum to -4 and 4, and the variance is 2 * 32 / 16."""
    error, count = mean_error(doubles(1, 3, 5, 7), torch.tensor([0, 0, 1, 1]))
    assert (error, count) == (pytest.approx(2), 2)
    mean, (low, high) = mean_ci95(doubles(1, 3, 5, 7), clusters=torch.tensor([4, 4, 9, 9]))
    assert mean == 4 and high - 4 == pytest.approx(12.7062 * 2, rel=1e-5) == 4 - low  # t(.975, 1) = 12.7062


def test_clusters_of_one_item_and_one_cluster_of_all_change_nothing() -> None:
    values = normal(9, stream())
    for clusters in (torch.arange(9), torch.zeros(9, dtype=torch.int64)):
        assert mean_ci95(values, None, clusters)[1] == pytest.approx(mean_ci95(values)[1])
        hits = values > 0
        assert share_ci95(hits, clusters) == share_ci95(hits)
    sides = values[:5], values[5:]
    own = torch.arange(5), torch.arange(5, 9)
    assert auc(*sides, own)[1] == pytest.approx(auc(*sides)[1])


def test_copies_of_items_add_nothing() -> None:
    """Ten copies of each item are as much evidence as the items themselves; unclustered, the interval shrinks."""
    values = normal(12, stream(3))
    copies, clusters = values.repeat_interleave(10), torch.arange(12).repeat_interleave(10)
    assert mean_ci95(copies, None, clusters)[1] == pytest.approx(mean_ci95(values)[1])
    assert mean_error(copies)[0] < mean_error(values)[0] / 3
    sides = (values[:6], values[6:])
    found = auc(*(side.repeat_interleave(10) for side in sides), (clusters[:60], clusters[60:]))
    wide, narrow = auc(*sides), auc(*(side.repeat_interleave(10) for side in sides))
    assert found[0] == pytest.approx(wide[0])
    assert found[1][1] - found[1][0] > narrow[1][1] - narrow[1][0]
    share, ends = share_ci95(torch.ones(120, dtype=torch.bool), clusters)
    assert (share, ends) == share_ci95(torch.ones(12, dtype=torch.bool))


def covers(kind: str, clustered: bool) -> float:
    """Return how often the interval of 20 clusters of 10 items holds the true value."""
    generator, held = stream(1), 0
    clusters = torch.arange(20).repeat_interleave(10)
    for _ in range(DRAWS):
        shared, own = 0.7 * normal(20, generator)[clusters], normal(200, generator)
        values, used = shared + own, clusters if clustered else None
        if kind == "mean":
            truth, ends = 0.0, mean_ci95(values, None, used)[1]
        elif kind == "share":
            truth, ends = 0.5, share_ci95(values > 0, used)[1]
        elif kind == "paired":  # a second model of the same items, whose sources move by other amounts
            other = ItemValues(0.3 * own, used)
            truth, ends = 0.0, ItemValues(values, used).less(other)[1]
        else:
            sides = (clusters[:100], clusters[100:]) if clustered else None
            truth, ends = 0.5, auc(values[:100], values[100:], sides)[1]
        held += ends is not None and ends[0] <= truth <= ends[1]
    return held / DRAWS


@pytest.mark.parametrize("kind", ["mean", "share", "paired", "auc"])
def test_coverage(kind: str) -> None:
    """Clustered intervals hold the truth in 93 to 97 of 100 draws; those that ignore clusters in fewer than 85."""
    assert 0.93 <= covers(kind, clustered=True) <= 0.97
    assert covers(kind, clustered=False) < 0.85


def test_a_paired_difference_is_surer_than_two_means() -> None:
    """Items differ by far more than the models do: pairing takes that out."""
    easy = 10 * normal(40, stream(2))
    ours, theirs = ItemValues(easy + 0.5 + 0.1 * normal(40, stream(5))), ItemValues(easy)
    value, (low, high) = ours.less(theirs)
    assert value == pytest.approx(0.5, abs=0.1) and 0.4 < low < 0.5 < high < 0.6
    assert theirs.figure()[1][1] - theirs.figure()[0] > 2


def test_differences_of_aucs() -> None:
    """A separated pair less an unseparated one is 1/2; a model less itself is 0, without an interval."""
    apart, mixed = Separation(doubles(3, 4), doubles(1, 2)), Separation(doubles(1, 2), doubles(1, 2))
    assert apart.less(mixed)[0] == 0.5
    assert mixed.less(mixed) == (0, None)
    members, others = normal(30, stream(7)) + 0.5, normal(30, stream(8))
    value, ends = auc_difference((members, others), (normal(30, stream(9)), others))
    assert ends is not None and ends[0] < value < ends[1]


def test_an_evaluation_records_differences_to_the_retrained_model() -> None:
    """Beside each figure over items: of subjects that have as many items as the retrained model."""
    items = [TextItem("", f"text {i}", label="ab"[i % 2]) for i in range(6)]
    split = Split("forget", TextDataset(items, torch.zeros(6, dtype=torch.bool)), torch.arange(6))
    evaluation = evaluation_of({}, {"forget": split})
    metric = Metric(name="right", label="right", formula="", unit="share")
    ids = torch.arange(6)
    assert evaluation.clusters(ids).tolist() == [0, 1, 0, 1, 0, 1]
    for subject, hits in (("target", [1] * 6), ("unlearned", [1, 0, 0, 0, 0, 0]), ("retrained", [0] * 6)):
        values = torch.tensor(hits, dtype=torch.bool)
        evaluation.record(metric, subject, "forget", values, clusters=evaluation.clusters(ids))
    evaluation.record(metric, "clean", "forget", torch.ones(5, dtype=torch.bool))
    found = {record.subject: record for record in evaluation.differences()}
    assert set(found) == {"target", "unlearned"}
    assert {record.metric for record in found.values()} == {"right_difference"}
    assert found["target"].value == 1 and found["unlearned"].value == pytest.approx(1 / 6)
    assert found["unlearned"].direction == "zero" and found["unlearned"].label == "right, less the retrained model’s"
    assert metric.matches("right_difference") and not metric.matches("righter")


def test_a_bootstrap_draws_whole_clusters() -> None:
    """Copies of items do not narrow its interval."""
    values = normal(30, stream(4))
    clusters = torch.arange(30).repeat_interleave(8)
    value, (low, high) = bootstrap(lambda mean: mean, Randomness(0), values)
    again, ends = bootstrap(lambda mean: mean, Randomness(0), values.repeat_interleave(8), clusters=clusters)
    assert again == pytest.approx(value) and ends == pytest.approx((low, high))
    _, narrow = bootstrap(lambda mean: mean, Randomness(0), values.repeat_interleave(8))
    assert math.isclose((narrow[1] - narrow[0]) * math.sqrt(8), high - low, rel_tol=0.1)
