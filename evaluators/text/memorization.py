"""Memorisation: how many answer tokens a model predicts, given the true tokens before."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from unlearn.core.validation import PositiveInt
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import add_items, some_of
from unlearn.evaluators.text.scoring import DIRECTIONS, answer_scores, measured_splits
from unlearn.models.capabilities import Continues

EXACT = Metric(
    name="exact_memorization",
    label="exact memorization",
    formula="mean over items of the share of answer tokens that are the likeliest given the true tokens before them; "
    "an answer ends with its end token, which counts. 0 ... 1",
    unit="share",
    direction=DIRECTIONS,
    source="Tirumala et al. 2022, section 3",
)
EXTRACTION = Metric(
    name="extraction_strength",
    label="extraction strength",
    formula="mean over items of 1 - min{k : all answer tokens from k on are the likeliest} / length, k = 0 ... "
    "length, so that an answer whose last token is wrong has 0. 0 ... 1",
    unit="share",
    direction=DIRECTIONS,
    source="Wang et al. 2025 (arXiv:2406.09179)",
)


@dataclass(frozen=True, kw_only=True)
class Memorization(Evaluator[Continues]):
    """Exact memorisation and extraction strength, means over items; the interval is over items.

    Items without answer tokens are left out.

    Args:
        items: at most this many items per split, drawn by the seed; null takes all.
        batch_size: items per forward pass; does not change the result.

    Reference:
        Tirumala et al., Memorization Without Overfitting, 2022, section 3. arXiv:2205.10770
        Wang et al., Towards Effective Evaluations and Comparisons for LLM Unlearning Methods, 2025. arXiv:2406.09179
    """

    items: PositiveInt | None = 500
    batch_size: PositiveInt = 16

    metrics: ClassVar = (EXACT, EXTRACTION)

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        result = EvaluationResult()
        for subject in evaluation.models:
            for split in measured_splits(evaluation):
                ids = some_of(evaluation, split, self.items)
                scores = answer_scores(evaluation, subject, split, ids, batch_size=self.batch_size)
                answered = scores.tokens > 0
                if answered.any():
                    for metric, column in ((EXACT, scores.exact), (EXTRACTION, scores.extraction)):
                        add_items(result, evaluation, metric, subject, split, ids[answered], column[answered])
        return result
