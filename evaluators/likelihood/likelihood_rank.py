"""The rank of items among the retain items by likelihood, and how far unlearning lowered it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import Range, at_least
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Metric
from unlearn.evaluators.likelihood.base import LikelihoodEvaluator
from unlearn.evaluators.sampling import add_items, some_of
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
class LikelihoodRank(LikelihoodEvaluator):
    """Z-score, quantile and quantile drop of bits/dim, relative to reference items under the SAME model.

    Args:
        reference: split of the reference items.
        reference_items: at most this many of them, drawn by the seed; null takes all.

    Reference:
        Malnick et al., Taming Normalizing Flows, 2024, section 4. arXiv:2211.16488
    """

    reference: Literal["retain", "test"] = "retain"
    reference_items: Annotated[int, Range(at_least, 2)] | None = 500  # a standard deviation needs two

    metrics: ClassVar = (Z, QUANTILE, DROP)

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
        items = self.chosen(evaluation)
        ranks = {
            (subject, split): self._ranks(evaluation, subject, split, ids)
            for subject in evaluation.models  # the outer loop: each is moved to the device once
            for split, ids in items.items()
        }
        for (split, ids), subject in product(items.items(), evaluation.models):
            z, quantiles = ranks[subject, split]
            add = partial(evaluation.record, clusters=evaluation.clusters(ids))
            add_items(result, evaluation, Z, subject, split, ids, z)
            for score, quantile in quantiles.items():
                about = {"score": score}
                result.records.append(add(QUANTILE, subject, split, quantile, about=about))
                if subject != "target":
                    drop = ranks["target", split][1][score] - quantile
                    result.records.append(add(DROP, subject, split, drop, about=about))
        return result

    def _ranks(
        self, evaluation: Evaluation[HasLikelihood], subject: str, split: str, ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return z (n,) and the quantiles (n,) by score."""
        others = some_of(evaluation, self.reference, self.reference_items)
        reference = self.bits(evaluation, subject, self.reference, others)
        bits = self.bits(evaluation, subject, split, ids)
        z = (bits - reference.mean()) / reference.std()  # nan where all reference items are equally likely
        return z, {"gaussian": 1 - torch.special.ndtr(z), "empirical": 1 - placement(bits, reference)}
