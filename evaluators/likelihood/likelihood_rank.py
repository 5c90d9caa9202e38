"""Where items rank among the retain items by likelihood, and how far unlearning moved them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.records import Direction, Record
from unlearn.core.validation import at_least
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, mean_ci95
from unlearn.evaluators.sampling import item_rows, likelihoods, present, some_of
from unlearn.evaluators.statistics import placement
from unlearn.models.capabilities import HasLikelihood

DIRECTIONS: dict[str, dict[str, Direction]] = {
    "likelihood_z": {"forget": "higher", "holdout": "retrained", "retain": "none", "test": "retrained"},
    "likelihood_quantile": {"forget": "lower", "holdout": "retrained", "retain": "none", "test": "retrained"},
    "quantile_drop": {"forget": "higher", "holdout": "retrained", "retain": "zero", "test": "zero"},
}


@dataclass(frozen=True, kw_only=True)
class LikelihoodRank(Evaluator[HasLikelihood]):
    """Z-score, quantile and quantile drop of bits/dim, relative to reference items under the SAME model.

    likelihood_z is r = (bits - mean) / std with the moments of the reference items. The Gaussian quantile is
    1 - Phi(r); the empirical one is the share of reference items that are less likely, a tie counting half: 1 is the
    most likely. quantile_drop is the target's quantile minus the subject's, item by item. All are means over items.

    Args:
        draws: draws of the dequantisation noise that are averaged, >= 1.
        items: at most so many items of a split, drawn by the seed; null takes all.
        reference: split of the reference items.
        reference_items: at most so many of them, drawn by the seed; null takes all.
        batch_size: items a forward pass; does not change the result.

    Reference:
        Malnick et al., Taming Normalizing Flows, 2024, section 4. arXiv:2211.16488
    """

    draws: int = 3
    items: int | None = 500
    reference: Literal["retain", "test"] = "retain"
    reference_items: int | None = 500
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse numbers below 1, and a reference of one item."""
        at_least(self, draws=1, items=1, reference_items=2, batch_size=1)

    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse a reference split without items."""
        if self.reference not in splits:
            raise RecipeError(
                f"evaluate.likelihood_rank.reference={self.reference}: there are no such items. "
                f"Allowed: {', '.join(splits)}."
            )

    def __call__(self, evaluation: Evaluation) -> EvaluationResult:
        """Return the three metrics for every subject and split; the drop for every subject but the target."""
        records: list[Record] = []
        rows: list[dict[str, Any]] = []
        for split in present(evaluation):
            ids = some_of(evaluation, split, self.items)
            before = self._ranks(evaluation, "target", split, ids)
            for subject in evaluation.models:
                z, quantiles = self._ranks(evaluation, subject, split, ids)
                records.append(_record(evaluation, "likelihood_z", subject, split, z))
                rows += item_rows(subject, split, ids, "likelihood_z", z)
                for score, quantile in quantiles.items():
                    records.append(_record(evaluation, "likelihood_quantile", subject, split, quantile, score))
                    if subject != "target":
                        drop = before[1][score] - quantile
                        records.append(_record(evaluation, "quantile_drop", subject, split, drop, score))
        return EvaluationResult(records, [], rows)

    def _ranks(self, evaluation: Evaluation, subject: str, split: str, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return z (n,) and the quantiles (n,) by score of the items under a subject."""
        others = some_of(evaluation, self.reference, self.reference_items)
        reference = likelihoods(evaluation, subject, self.reference, others, self.draws, self.batch_size)
        bits = likelihoods(evaluation, subject, split, ids, self.draws, self.batch_size)
        z = (bits - reference.mean()) / reference.std()  # nan where all reference items are equally likely
        return z, {
            "gaussian": 1 - torch.special.ndtr(z),
            "empirical": 1 - placement(bits, reference),
        }


def _record(evaluation: Evaluation, metric: str, subject: str, split: str, values: Tensor, score: str = "") -> Record:
    mean, ci95 = mean_ci95(values)
    return Record(
        evaluator="likelihood_rank",
        metric=metric,
        subject=subject,
        split=split,
        about={"score": score} if score else {},
        value=mean,
        ci95=ci95,
        n=len(values),
        seed=evaluation.seed,
        direction=DIRECTIONS[metric][split],
        unit="std" if metric == "likelihood_z" else "",
    )
