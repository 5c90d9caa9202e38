"""Sample answers of all models to a few questions, side by side."""

from dataclasses import dataclass
from itertools import chain

from torch import Tensor
from typing_extensions import override

from unlearn.core.records import TextTable
from unlearn.core.validation import PositiveInt
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.sampling import limited
from unlearn.evaluators.text.generation import generated
from unlearn.evaluators.text.scoring import question_ids, texts
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

    items: PositiveInt = 4
    new_tokens: PositiveInt = 48
    batch_size: PositiveInt = 16

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        data = {split: evaluation.splits[split] for split in SPLITS if split in evaluation.splits}
        asked = {
            split: limited(question_ids(each), self.items, evaluation.seed, f"answers/{split}")
            for split, each in data.items()
        }
        rows = [
            [SPLITS[split], *texts(data[split]).words(item)] for split, ids in asked.items() for item in ids.tolist()
        ]
        for subject in evaluation.models:  # outside of the splits: only one model at a time is on the device
            said = [self.said(evaluation, subject, split, ids) for split, ids in asked.items() if len(ids)]
            for row, answer in zip(rows, chain.from_iterable(said), strict=True):
                row.append(answer)
        columns = ["", "question", TRUTH, *evaluation.models]
        caption = (
            f"What each model says, word for word, likeliest token first, {self.new_tokens} tokens at most. "
            "✓ marks the words of the data's answer. Drawn by the seed, not chosen."
        )
        return EvaluationResult(
            text_tables=[TextTable("answers", "Answers", caption, columns, rows, TRUTH)] if rows else []
        )

    def said(self, evaluation: Evaluation[Continues], subject: str, split: str, ids: Tensor) -> list[str]:
        """Return a model's answers to items (n,)."""
        tokens = generated(evaluation, subject, split, ids, self.new_tokens, batch_size=self.batch_size)
        return [text.strip() for text in evaluation.models[subject].text(tokens)]
