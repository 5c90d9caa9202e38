"""The rank of items among the retain items by likelihood, and how far unlearning lowered it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import at_least
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import add_items, likelihoods, present, some_of
from unlearn.evaluators.statistics import placement
from unlearn.models.capabilities import HasLikelihood

Z = Metric(
    name="likelihood_z",
    label="likelihood z-score",
    formula="mean over items of r = (b - mean) / std; b is an item's bits/dim, mean and std (n - 1) are those of the "
    "reference items (retain) under the same model",
    unit="std",
    direction={"forget": "higher", "holdout": "retrained", "test": "retrained", "retain": "none"},
    source="Malnick et al. 2024, section 4",
)
QUANTILE = Metric(
    name="likelihood_quantile",
    label="likelihood quantile",
    formula="`score: gaussian`: mean of 1 - Φ(r). `score: empirical`: mean share of reference items with more "
    "bits/dim, ties counting half. 1 is the most likely",
    direction={"forget": "lower", "holdout": "retrained", "test": "retrained", "retain": "none"},
    source="Malnick et al. 2024, section 4; the empirical form is ours, as bits/dim are skewed",
)
DROP = Metric(
    name="quantile_drop",
    label="quantile drop",
    formula="mean over items of q_target - q_subject, for every subject but the target; `score` as above",
    direction={"forget": "higher", "holdout": "retrained", "retain": "zero", "test": "zero"},
    source="Malnick et al. 2024, section 4",
)


@dataclass(frozen=True, kw_only=True)
class LikelihoodRank(Evaluator[HasLikelihood]):
    """Z-score, quantile and quantile drop of bits/dim, relative to reference items under the SAME model.

    likelihood_z is r = (bits - mean) / std with the moments of the reference items. The Gaussian quantile is
    1 - Phi(r); the empirical one is the share of reference items that are less likely, a tie counting half: 1 is the
    most likely. quantile_drop is the target's quantile minus the subject's, item by item. All are means over items.

    Args:
        draws: draws of the dequantisation noise that are averaged, >= 1.
        items: at most this many items per split, drawn by the seed; null takes all.
        reference: split of the reference items.
        reference_items: at most this many of them, drawn by the seed; null takes all.
        batch_size: items per forward pass; does not change the result.

    Reference:
        Malnick et al., Taming Normalizing Flows, 2024, section 4. arXiv:2211.16488
    """

    draws: int = 3
    items: int | None = 500
    reference: Literal["retain", "test"] = "retain"
    reference_items: int | None = 500
    batch_size: int = 256

    metrics: ClassVar = (Z, QUANTILE, DROP)

    def __post_init__(self) -> None:
        at_least(self, draws=1, items=1, reference_items=2, batch_size=1)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse a reference split without items."""
        if self.reference not in splits:
            raise RecipeError(
                f"evaluate.likelihood_rank.reference={self.reference}: there are no such items. "
                f"Allowed: {', '.join(splits)}."
            )

    @override
    def __call__(self, evaluation: Evaluation[HasLikelihood]) -> EvaluationResult:
        result = EvaluationResult()
        items = {split: some_of(evaluation, split, self.items) for split in present(evaluation)}
        ranks = {
            (subject, split): self._ranks(evaluation, subject, split, ids)
            for subject in evaluation.models  # the outer loop: each is moved to the device once
            for split, ids in items.items()
        }
        for split, ids in items.items():
            for subject in evaluation.models:
                z, quantiles = ranks[subject, split]
                add_items(result, evaluation, Z, subject, split, ids, z)
                for score, quantile in quantiles.items():
                    about = {"score": score}
                    result.records.append(evaluation.record(QUANTILE, subject, split, quantile, about=about))
                    if subject != "target":
                        drop = ranks["target", split][1][score] - quantile
                        result.records.append(evaluation.record(DROP, subject, split, drop, about=about))
        return result

    def _ranks(
        self, evaluation: Evaluation[HasLikelihood], subject: str, split: str, ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return z (n,) and the quantiles (n,) by score."""
        others = some_of(evaluation, self.reference, self.reference_items)
        reference = likelihoods(evaluation, subject, self.reference, others, self.draws, self.batch_size)
        bits = likelihoods(evaluation, subject, split, ids, self.draws, self.batch_size)
        z = (bits - reference.mean()) / reference.std()  # nan where all reference items are equally likely
        return z, {
            "gaussian": 1 - torch.special.ndtr(z),
            "empirical": 1 - placement(bits, reference),
        }
