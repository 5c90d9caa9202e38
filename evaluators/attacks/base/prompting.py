"""Attacks by prompt: ask the same question in several ways; the best answer counts."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.text import Encoder, TextDataset, collate
from unlearn.evaluators.attacks.base.extraction import attack_records, attacked, memorised
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.sampling import item_rows
from unlearn.evaluators.text.scoring import texts
from unlearn.models.capabilities import Continues

Pair = tuple[list[int], list[int]]
"""The tokens of a prompt, and those of the answer that is scored after it."""


@dataclass(frozen=True, kw_only=True)
class PromptAttack(Evaluator[Continues]):
    """Asks each question in one or several ways; each score is the best over the ways.

    Args:
        items: at most this many forget items, drawn by the seed; null takes all.
        batch_size: prompts per forward pass; does not change the result.
    """

    items: PositiveInt | None = 100
    batch_size: PositiveInt = 16

    lacking: ClassVar[str] = "the forget items ask nothing"
    """Why no item can be attacked, in words."""

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        texts(splits["forget"])  # refuses other data

    @abstractmethod
    def ways(self, evaluation: Evaluation[Continues], subject: str, ids: Tensor) -> list[list[Pair]]:
        """Return, for each item, the prompts under which its answer is scored; at least one."""

    @abstractmethod
    def budget(self) -> str:
        """Return the attacker's budget per item, in words."""

    def open_to(self, data: TextDataset) -> Tensor:
        """Return (N,) bool: the items that can be attacked; by default all questions."""
        return data.having_form("prompt")

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        ids = attacked(evaluation, self.items, self.open_to(texts(evaluation.splits["forget"])))
        found, metric = EvaluationResult(), self.metrics[0]
        if not len(ids):
            note = f"{metric.name.removeprefix('attack_')}: {self.lacking}, so there is no {metric.name}."
            return EvaluationResult(notes=[note])
        for subject, model in evaluation.models.items():
            scores = self.best(evaluation, model, self.ways(evaluation, subject, ids))
            found.records.extend(attack_records(evaluation, metric, subject, ids, scores, self.budget()))
            found.items.extend(item_rows(subject, "forget", ids, metric.name, scores[:, 0]))
        return found

    def best(self, evaluation: Evaluation[Continues], model: Continues, ways: Sequence[Sequence[Pair]]) -> Tensor:
        """Return the best of each score over the ways to ask, (n, 2) for n items; nan where none has answer tokens."""
        pairs = [pair for several in ways for pair in several]

        def score(places: Tensor) -> Tensor:
            batch = collate([pairs[place] for place in places.tolist()], torch.arange(len(places)))
            return memorised(model, {key: value.to(evaluation.device) for key, value in batch.items()})

        scores = map_ids(score, torch.arange(len(pairs)), self.batch_size).cpu()
        known = scores.nan_to_num(nan=-1)  # a way that leaves no answer tokens is no way
        best = torch.stack([part.amax(dim=0) for part in known.split([len(several) for several in ways])])
        return best.masked_fill(best < 0, torch.nan)


def with_context(encoder: Encoder, context: Sequence[str], question: str, answer: str) -> Pair:
    """Return the tokens of a question after lines of context, and of its whole answer.

    Context that exceeds the model's length is dropped from the beginning.
    """
    alone = encoder.encode(question, answer)
    for start in range(len(context)):
        prompt, kept = encoder.encode("\n".join([*context[start:], question]), answer)
        if len(kept) >= len(alone[1]):
            return prompt, kept
    return alone


def related_questions(evaluation: Evaluation[Continues], data: TextDataset, item: int, most: int) -> list[int]:
    """Return up to ``most`` other forget questions of an item's label, in an order drawn by the seed."""
    ids = attacked(evaluation, None, data.having_form("prompt"))
    order = evaluation.randomness.child("companions").permutation(len(ids))
    same = [other for other in ids[order].tolist() if other != item and data.labels[other] == data.labels[item]]
    return same[:most]
