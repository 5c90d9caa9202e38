"""One teacher-forced pass over answers, shared by all evaluators of likelihoods."""

from typing import NamedTuple

import torch
from torch import Tensor

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.records import Direction
from unlearn.data.base import Split
from unlearn.data.text import TextDataset
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.sampling import without_traps
from unlearn.evaluators.text.metrics import exact_memorization, extraction_strength, lowest_mean, token_measures
from unlearn.models.capabilities import Continues, Model

DIRECTIONS: dict[str, Direction] = {"forget": "retrained", "retain": "higher", "holdout": "retrained"}
"""Splits whose texts are measured, in the order of the tables, and where a better share of what is said right lies."""


class AnswerScores(NamedTuple):
    """Scores of answers under a model, each (n,) float64 on the CPU; nan for an item without answer tokens.

    Attributes:
        tokens: number of answer tokens, the end token included.
        nll: mean of -log p over the answer tokens, in nats.
        exact: share of the answer tokens that are the likeliest ones.
        extraction: extraction strength.
        min_k: mean log p of the least likely share k of the tokens.
        min_k_plus_plus: mean standardised log p of the lowest share k of the tokens.
    """

    tokens: Tensor
    nll: Tensor
    exact: Tensor
    extraction: Tensor
    min_k: Tensor
    min_k_plus_plus: Tensor


def answer_scores(
    evaluation: Evaluation[Continues],
    subject: str,
    split: str,
    ids: Tensor,
    form: str = "",
    k: float = 0.4,
    batch_size: int = 16,
) -> AnswerScores:
    """Return the scores of items (n,) of a split's data in a form; items scored before are read from the cache."""
    data = texts(evaluation.splits[split])
    unknown = torch.full((len(data), len(AnswerScores._fields)), torch.nan, dtype=torch.float64)
    table = evaluation.cache.setdefault(("answers", subject, id(data), form, k), unknown)
    missing = ids[table[ids, 0].isnan()]  # the number of tokens is never nan itself
    if len(missing):
        model = evaluation.models[subject]  # only now: asking moves it to the device
        lengths = torch.tensor([sum(map(len, data.tokens(item, form))) for item in missing.tolist()])
        ordered = missing[lengths.argsort(stable=True)]  # items of similar length share a batch, to save padding

        def score(some: Tensor) -> Tensor:
            answers = model.answers(evaluation.batch(split, some, form))
            log_p, right, z = token_measures(answers)
            columns = AnswerScores(
                tokens=answers.lengths.double(),
                nll=-answers.sums(log_p.double()) / answers.lengths.double(),
                exact=exact_memorization(answers, right),
                extraction=extraction_strength(answers, right),
                min_k=lowest_mean(answers, log_p, k),
                min_k_plus_plus=lowest_mean(answers, z, k),
            )
            return torch.stack(columns, dim=1)

        table[ordered] = map_ids(score, ordered.to(evaluation.device), batch_size).cpu()
    return AnswerScores(*table[ids].unbind(dim=1))


def measured_splits(evaluation: Evaluation[Model]) -> list[str]:
    """Return the splits of ``DIRECTIONS`` that the evaluation has."""
    return [split for split in DIRECTIONS if split in evaluation.splits]


def texts(split: Split) -> TextDataset:
    """Return a split's data. Raises RecipeError if it is not text."""
    if not isinstance(split.dataset, TextDataset):
        raise RecipeError(
            f"This evaluator reads text, and the data is a {type(split.dataset).__name__}. "
            "Drop it from the recipe (evaluate.NAME=null), or type a text source (data=factbook)."
        )
    return split.dataset


def question_ids(split: Split) -> Tensor:
    """Return the ids of a split's items that ask something, (n,), without traps."""
    ids = without_traps(split)
    return ids[texts(split).having_form("prompt")[ids]]
