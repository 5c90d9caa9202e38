"""Memorisation: how much of its answers a model would say by itself, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearn.core.records import Direction, Record
from unlearn.core.validation import at_least
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.sampling import item_rows, mean_share, some_of
from unlearn.evaluators.text.scoring import answer_scores
from unlearn.models.capabilities import Continues

DIRECTIONS: dict[str, Direction] = {"forget": "retrained", "retain": "higher", "holdout": "retrained"}
METRICS = {"exact_memorization": "exact", "extraction_strength": "extraction"}


@dataclass(frozen=True, kw_only=True)
class Memorization(Evaluator[Continues]):
    """Exact memorisation and extraction strength, means over items; the interval is over items.

    exact_memorization is the share of an answer's tokens that are the likeliest ones given the true tokens before
    them. extraction_strength is 1 - min{k : all tokens from k on are} / |y|, with k up to |y|: 0 where the last token
    is not. The answer's end token counts; items without answer tokens are left out.

    Args:
        items: at most so many items of a split, drawn by the seed; null takes all.
        batch_size: items a forward pass; does not change the result.

    Reference:
        Tirumala et al., Memorization Without Overfitting, 2022, section 3. arXiv:2205.10770
        Wang et al., Towards Effective Evaluations and Comparisons for LLM Unlearning Methods, 2025. arXiv:2406.09179
    """

    items: int | None = 500
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        at_least(self, items=1, batch_size=1)

    def __call__(self, evaluation: Evaluation) -> EvaluationResult:
        """Return both metrics for every subject on forget, retain and holdout, item by item too."""
        records: list[Record] = []
        rows: list[dict[str, Any]] = []
        for subject in evaluation.models:
            for split in [name for name in DIRECTIONS if name in evaluation.splits]:
                ids = some_of(evaluation, split, self.items)
                scores = answer_scores(evaluation, subject, split, ids, batch_size=self.batch_size)
                said = scores.tokens > 0
                for metric, field in METRICS.items() if said.any() else ():
                    values = getattr(scores, field)[said]
                    mean, ci95 = mean_share(values)
                    records.append(
                        Record(
                            evaluator="memorization",
                            metric=metric,
                            subject=subject,
                            split=split,
                            value=mean,
                            ci95=ci95,
                            n=len(values),
                            seed=evaluation.seed,
                            direction=DIRECTIONS[split],
                            unit="share",
                        )
                    )
                    rows += item_rows(subject, split, ids[said], metric, values)
        return EvaluationResult(records, items=rows)
