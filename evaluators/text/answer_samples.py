"""Sample answers of all models to a few questions, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.records import TextTable
from unlearn.core.validation import at_least
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.sampling import limited, without_traps
from unlearn.evaluators.text.generation import generated
from unlearn.evaluators.text.scoring import texts
from unlearn.models.capabilities import Continues

SPLITS = {
    "forget": "forget: what was to be forgotten",
    "probe": "probe: the true facts that were contradicted",
    "retain": "retain: what was to be kept",
    "holdout": "holdout: what no model was trained on",
}
TRUTH = "answer in the data"


@dataclass(frozen=True, kw_only=True)
class AnswerSamples(Evaluator[Continues]):
    """A table of a few questions per split: the data's answer, and every model's greedy answer.

    The questions are the same for every model. Passages have no question and are left out.

    Args:
        items: questions per split, drawn by the seed.
        new_tokens: largest number of tokens per answer.
        batch_size: prompts at once; does not change the answers.
    """

    items: int = 4
    new_tokens: int = 48
    batch_size: int = 16

    def __post_init__(self) -> None:
        at_least(self, items=1, new_tokens=1, batch_size=1)

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        rows: list[list[str]] = []
        for split, heading in SPLITS.items():
            if split in evaluation.splits:
                rows += [[heading, *row] for row in self.rows(evaluation, split)]
        columns = ["", "question", TRUTH, *evaluation.models]
        caption = (
            f"What each model says, word for word, likeliest token first, {self.new_tokens} tokens at most. "
            "✓ marks the words of the data's answer. Drawn by the seed, not chosen."
        )
        return EvaluationResult(
            text_tables=[TextTable("answers", "Answers", caption, columns, rows, TRUTH)] if rows else []
        )

    def rows(self, evaluation: Evaluation[Continues], split: str) -> list[list[str]]:
        """Return question, true answer and each model's answer to some questions of a split."""
        data, ids = texts(evaluation.splits[split]), self.questions(evaluation, split)
        pairs = [data.words(item) for item in ids.tolist()]
        said = [self.said(evaluation, subject, split, ids) for subject in evaluation.models] if len(ids) else []
        return [
            [question, answer, *(answers[index] for answers in said)] for index, (question, answer) in enumerate(pairs)
        ]

    def questions(self, evaluation: Evaluation[Continues], split: str) -> Tensor:
        """Return the ids of the questions shown, without traps."""
        data, ids = texts(evaluation.splits[split]), without_traps(evaluation.splits[split])
        return limited(ids[data.having_form("prompt")[ids]], self.items, evaluation.seed, f"answers/{split}")

    def said(self, evaluation: Evaluation[Continues], subject: str, split: str, ids: Tensor) -> list[str]:
        """Return a model's answers to items (n,)."""
        tokens = generated(evaluation, subject, split, ids, self.new_tokens, batch_size=self.batch_size)
        words: list[str] = evaluation.models[subject].text(torch.as_tensor(tokens))
        return [text.strip() for text in words]
