"""Figures that are means over items or AUCs, and how they differ between two models of the same items."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.evaluators.statistics import Interval, Pair, auc, auc_change, auc_difference, mean_ci95, share_ci95


@dataclass(frozen=True, eq=False)
class ItemValues:
    """Values of items, whose mean is a figure.

    Args:
        values: (n,) float; or bool, hits whose share is the figure.
        clusters: (n,) int64, the source of each item (see ``Dataset.clusters``); None where each is its own.
        is_share: whether the values lie in [0, 1].
    """

    values: Tensor
    clusters: Tensor | None = None
    is_share: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def figure(self) -> tuple[float, Interval]:
        """Return the mean and its 95 % interval."""
        if self.values.dtype == torch.bool:
            return share_ci95(self.values, self.clusters)
        return mean_ci95(self.values, (0.0, 1.0) if self.is_share else None, self.clusters)

    def less(self, other: "ItemValues") -> tuple[float, Interval]:
        """Return the mean difference to another model's values of the same items, and its 95 % interval."""
        within = (-1.0, 1.0) if self.is_share or self.values.dtype == torch.bool else None
        return mean_ci95(self.values.double() - other.values.double(), within, self.clusters)


@dataclass(frozen=True, eq=False)
class Separation:
    """Scores of members and of non-members, whose figure is the AUC of the attack that calls high ones members.

    Args:
        members: (m,), of the items that may have been trained on.
        others: (n,), of items that were not.
        clusters: (m,) and (n,) int64, the source of each item; None where each is its own.
    """

    members: Tensor
    others: Tensor
    clusters: Pair | None = None

    def __len__(self) -> int:
        return len(self.members) + len(self.others)

    def figure(self) -> tuple[float, Interval]:
        """Return the AUC and its 95 % interval."""
        return auc(self.members, self.others, self.clusters)

    def less(self, other: "Separation") -> tuple[float, Interval]:
        """Return the difference to another model's AUC over the same items, and its 95 % interval."""
        return auc_difference((self.members, self.others), (other.members, other.others), self.clusters)


def privleak(subject: Separation, retrained: Separation) -> tuple[float, Interval]:
    """Return PrivLeak in % of scores of forget items (members) and of holdout items, and its 95 % interval."""
    # MUSE, section 3.1: here holdout items are the members; the AUC is relative to the retrained model
    clusters = subject.clusters and subject.clusters[::-1]
    own, gold = ((scores.others, scores.members) for scores in (subject, retrained))
    value, ci95 = auc_change(own, gold, clusters)
    return 100 * value, ci95 and (100 * ci95[0], 100 * ci95[1])
