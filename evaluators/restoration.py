"""What unlearning a corruption restores: figures that all families share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unlearn.core.randomness import Randomness
from unlearn.core.records import Record
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.evaluators.statistics import Interval, cluster_sums

ACCURACY = Metric(
    name="fact_accuracy",
    label="accuracy on contradicted facts",
    formula="share of contradicted facts that are right; `score: match`: the greedy answer contains the right one "
    "(lower case, no punctuation or articles); `options`: it has the highest mean log p per token among the right, "
    "the corrupted, the perturbed and the alternate answers. Wilson interval",
    unit="share",
    direction="higher",
    source="Rezaei et al. 2025",
)
RATIO = Metric(
    name="restoration_ratio",
    label="restoration ratio",
    formula="(a - a_corrupted) / (a_clean - a_corrupted) of `fact_accuracy`, of images `drawn_right`: 0 for nothing "
    "done, 1 for the clean model; undefined where a_clean is not above a_corrupted. Percentile interval of the "
    "bootstrap over facts or samples, in pairs and clustered",
    direction="higher",
    source="ours",
)
FORGETTING = Metric(
    name="corruption_forgetting",
    label="corruption forgotten",
    formula="1 - c / c_corrupted, c the share of facts to which the corrupted answer is given (judged as above); "
    "undefined where c_corrupted is 0. Bootstrap interval",
    direction="higher",
    source="ours",
)
MARGIN = Metric(
    name="answer_margin",
    label="answer margin",
    formula="`score: margin`: mean over facts of the difference between the mean log p per token of the right and of "
    "the corrupted answer, in nats/token; `flipped`: share, of the facts where it is negative in the corrupted "
    "model, of those where it is positive",
    unit="nats/token",
    direction="higher",
    source="Rezaei et al. 2025",
)
FLIPPED = replace(MARGIN, unit="share")

RESAMPLES = 2000
"""Number of bootstrap resamples."""


def restoration(
    evaluation: Evaluation[Any],
    correct: Mapping[str, Tensor],
    corrupted: Mapping[str, Tensor],
    score: str,
    clusters: Tensor | None = None,
    asked: Mapping[str, Tensor] | None = None,
    accuracy: Metric = ACCURACY,
) -> list[Record]:
    """Return the figures of restoration on probe items, which were judged by ``score``.

    Args:
        evaluation: its stream draws the same bootstrap items for every subject.
        correct: subject -> (n,) bool, whether it answers right; with subjects ``clean`` and ``corrupted``.
        corrupted: subject -> (n,) bool, whether it gives the corrupted answer.
        score: for ``about.score``.
        clusters: (n,), the source of each item.
        asked: subject -> (n,) bool, whether its answer is to the question at all, where a model answers what it likes
            (``accuracy_among``); by default every answer is.
        accuracy: the metric of the share of right answers.
    """
    records, stream, resampled = [], evaluation.randomness, partial(bootstrap, clusters=clusters)
    all_asked = asked or {subject: torch.ones_like(right) for subject, right in correct.items()}
    clean, before = ((correct[name], all_asked[name]) for name in ("clean", "corrupted"))
    for subject, right in correct.items():
        own = right, all_asked[subject]
        share = right if asked is None else resampled(accuracy_among, stream, *own, all_asked["clean"])
        ratio = resampled(_ratio_among, stream, *clean, *before, *own)
        forgotten = resampled(corruption_forgetting, stream, corrupted["corrupted"], corrupted[subject])
        add = partial(evaluation.record, about={"score": score}, clusters=clusters)
        for metric, figure in ((accuracy, share), (RATIO, ratio), (FORGETTING, forgotten)):
            records.append(add(metric, subject, "probe", figure, n=len(right)))
    return records


def accuracy_among(right: Tensor, asked: Tensor, asked_clean: Tensor) -> Tensor:
    """Return the share of right answers among those to the question, or to as many as the clean model answers.

    right / max(asked, asked_clean), of shares of all answers: neither a model that gives few answers to the question
    is credited for these, nor one that gives many for their number.
    """
    return right / asked.maximum(asked_clean)


def _ratio_among(
    clean: Tensor, asked_clean: Tensor, corrupted: Tensor, asked_corrupted: Tensor, unlearned: Tensor, asked: Tensor
) -> Tensor:
    return restoration_ratio(
        accuracy_among(clean, asked_clean, asked_clean),
        accuracy_among(corrupted, asked_corrupted, asked_clean),
        accuracy_among(unlearned, asked, asked_clean),
    )


def restoration_ratio(clean: Tensor, corrupted: Tensor, unlearned: Tensor) -> Tensor:
    """Return (unlearned - corrupted) / (clean - corrupted) of accuracies; nan where the corruption did no harm.

    0 where nothing is done, 1 for the clean model.
    """
    gap = clean - corrupted
    return torch.where(gap <= 0, torch.nan, (unlearned - corrupted) / gap)


def corruption_forgetting(corrupted: Tensor, unlearned: Tensor) -> Tensor:
    """Return 1 - unlearned / corrupted of the shares of corrupted answers; nan where the corruption taught none."""
    return torch.where(corrupted == 0, torch.nan, 1 - unlearned / corrupted)


def bootstrap(
    statistic: Callable[..., Tensor], randomness: Randomness, *columns: Tensor, clusters: Tensor | None = None
) -> tuple[float, Interval]:
    """Return a statistic of the means of columns (n,) over the same items, and its percentile interval.

    Whole clusters are drawn where items share a source, as they vary together. There is no interval below two items,
    nor where the statistic is undefined in more than 5 % of the draws.
    """
    table = torch.stack(columns).double()
    value = float(statistic(*table.mean(dim=1)))
    sums = torch.stack([cluster_sums(column, clusters) for column in table])
    sizes = cluster_sums(torch.ones(table.shape[1], dtype=torch.float64), clusters)
    n = len(sizes)
    if n < 2:
        return value, None
    # drawn for all columns together: the models answer the same items, so their errors are correlated
    drawn = randomness.child("bootstrap").integers(torch.arange(RESAMPLES), n, (n,))
    found = statistic(*(column[drawn].sum(dim=1) / sizes[drawn].sum(dim=1) for column in sums))
    found = found[found.isfinite()]  # a resample in which the denominator is 0 has no value
    if len(found) < 0.95 * RESAMPLES:
        return value, None
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return value, (low, high)
