"""Restoration in figures, for models of every family: what unlearning brings back, and what it takes away."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from unlearn.core.randomness import Randomness
from unlearn.core.records import Direction, Record
from unlearn.evaluators.base import share_ci95

RESAMPLES = 2000
"""Draws of the bootstrap."""

Interval = tuple[float, float] | None


def restoration(
    evaluator: str,
    correct: Mapping[str, Tensor],
    corrupted: Mapping[str, Tensor],
    score: str,
    randomness: Randomness,
    seed: int,
    split: str = "probe",
) -> list[Record]:
    """Return the figures of restoration, for a model of any family.

    Args:
        evaluator: registry name, for the records.
        correct: subject -> (n,) bool, whether it is right on each item; ``clean`` and ``corrupted`` among the subjects.
        corrupted: subject -> (n,) bool, whether it says of each item what the corruption taught.
        score: how items were judged, for ``about.score``.
        randomness: stream of the bootstrap, which draws the same items for every subject.
        seed: of the run, for the records.
        split: where the items are from.
    """
    records = []

    def add(metric: str, subject: str, value: float, ci95: Interval, direction: Direction, unit: str = "") -> None:
        about, n = {"score": score}, len(correct[subject])
        records.append(
            Record(
                evaluator=evaluator,
                metric=metric,
                subject=subject,
                split=split,
                about=about,
                value=value,
                ci95=ci95,
                n=n,
                seed=seed,
                direction=direction,
                unit=unit,
            )
        )

    for subject in correct:
        add(
            "fact_accuracy", subject, *share_ci95(int(correct[subject].sum()), len(correct[subject])), "higher", "share"
        )
        ratio = bootstrap(restoration_ratio, randomness, correct["clean"], correct["corrupted"], correct[subject])
        add("restoration_ratio", subject, *ratio, "higher")
        forgotten = bootstrap(corruption_forgetting, randomness, corrupted["corrupted"], corrupted[subject])
        add("corruption_forgetting", subject, *forgotten, "higher")
    return records


def restoration_ratio(clean: Tensor, corrupted: Tensor, unlearned: Tensor) -> Tensor:
    """Return (unlearned - corrupted) / (clean - corrupted) of accuracies; nan where the corruption changed nothing.

    0 where nothing is done, 1 for the clean model.
    """
    gap = clean - corrupted
    return torch.where(gap == 0, torch.nan, (unlearned - corrupted) / gap)


def corruption_forgetting(corrupted: Tensor, unlearned: Tensor) -> Tensor:
    """Return 1 - unlearned / corrupted of the shares of corrupted answers; nan where the corruption taught none."""
    return torch.where(corrupted == 0, torch.nan, 1 - unlearned / corrupted)


def bootstrap(statistic: Callable[..., Tensor], randomness: Randomness, *columns: Tensor) -> tuple[float, Interval]:
    """Return a statistic of the means of columns (n,) over the same items, and its percentile interval over items.

    There is no interval below two items, nor where the statistic is undefined in more than a twentieth of the draws.
    """
    table = torch.stack(columns).double()
    value = float(statistic(*table.mean(dim=1)))
    n = table.shape[1]
    if n < 2:
        return value, None
    drawn = randomness.child("bootstrap").integers(torch.arange(RESAMPLES), n, (n,))
    found = statistic(*(column[drawn].mean(dim=1) for column in table))
    found = found[found.isfinite()]
    if len(found) < 0.95 * RESAMPLES:
        return value, None
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return value, (low, high)
