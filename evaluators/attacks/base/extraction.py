"""Scores that every attack on a language model reports: how much of the forget answers it reproduces."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from unlearn.core.distributed import map_ids
from unlearn.core.records import Record
from unlearn.data.base import Batch
from unlearn.data.text import Encoder, TextDataset
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.evaluators.sampling import limited, without_traps
from unlearn.evaluators.text.metrics import exact_memorization, extraction_strength
from unlearn.evaluators.text.scoring import texts
from unlearn.models.capabilities import Continues

SCORES = ("exact_memorization", "extraction_strength")
"""Columns of ``memorised``."""


def memorised(model: Continues, batch: Batch) -> Tensor:
    """Return exact memorisation and extraction strength, (B, 2) float64; nan without answer tokens."""
    answers = model.answers(batch)
    right = answers.logits.argmax(dim=1) == answers.targets
    return torch.stack((exact_memorization(answers, right), extraction_strength(answers, right)), dim=1)


def scores_of(evaluation: Evaluation[Continues], model: Continues, ids: Tensor, batch_size: int) -> Tensor:
    """Return the scores of forget items without a change of their prompts, (n, 2) on the CPU."""
    return map_ids(lambda part: memorised(model, evaluation.batch("forget", part)), ids, batch_size).cpu()


def attacked(evaluation: Evaluation[Continues], limit: int | None, among: Tensor | None = None) -> Tensor:
    """Return the forget items that attacks are scored on, or ``limit`` of them drawn by the seed, without traps.

    Args:
        evaluation: with the forget split.
        limit: items at most; None takes all.
        among: (N,) bool, the items of the dataset that may be taken; None for all.
    """
    split = evaluation.splits["forget"]
    ids = without_traps(split)
    return limited(ids if among is None else ids[among[ids]], limit, evaluation.seed, "attacked")


def attack_records(
    evaluation: Evaluation[Continues],
    metric: Metric,
    subject: str,
    ids: Tensor,
    scores: Tensor,
    budget: str,
    about: Mapping[str, str] | None = None,
) -> list[Record]:
    """Return the mean of each score (n, 2) of items (n,), with its interval, without those that have no answer."""
    answered = ~scores[:, 0].isnan()
    add = partial(evaluation.record, metric, subject, "forget", clusters=evaluation.clusters(ids[answered]))
    return [
        add(values, about={"score": score, "budget": budget, **(about or {})})
        for score, values in zip(SCORES, scores[answered].unbind(dim=1), strict=True)
    ]


def forget_texts(evaluation: Evaluation[Continues]) -> tuple[TextDataset, Encoder]:
    """Return the data of the forget items, and the encoder by which the models tokenize it."""
    data = texts(evaluation.splits["forget"])
    if data.encoder is None:
        raise RuntimeError("text has no tokens before a model's encoder is known: call encoded_by")
    return data, data.encoder
