"""Membership inference: does the likelihood distinguish forgotten items from items never trained on?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from unlearn.core.validation import at_least
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import likelihoods, present, some_of
from unlearn.evaluators.statistics import auc
from unlearn.models.capabilities import HasLikelihood

AUC = Metric(
    name="membership_auc",
    label="membership inference AUC",
    formula="P(a forget item is likelier than a holdout item) + P(tie) / 2; interval by DeLong's variance. 0.5: the "
    "likelihood tells nothing",
    direction="retrained",
    source="Yeom et al. 2018, section 3.1; DeLong et al. 1988",
)


@dataclass(frozen=True, kw_only=True)
class Membership(Evaluator[HasLikelihood]):
    """Area under the ROC curve of the attack that calls the likelier items members: forget against holdout.

    0.5 is no leak, 1 is a perfect attack. Below 0.5 the forget items became less likely than unseen ones, which
    reveals them too: compare with the retrained model's value. The interval is DeLong's.

    Args:
        draws: draws of the dequantisation noise that are averaged, >= 1.
        items: at most this many items per split, drawn by the seed; null takes all.
        batch_size: items per forward pass; does not change the result.

    Reference:
        Yeom et al., Privacy Risk in Machine Learning, 2018, section 3.1. arXiv:1709.01604
    """

    draws: int = 3
    items: int | None = 500
    batch_size: int = 256

    metrics: ClassVar = (AUC,)

    def __post_init__(self) -> None:
        at_least(self, draws=1, items=1, batch_size=1)

    @override
    def __call__(self, evaluation: Evaluation[HasLikelihood]) -> EvaluationResult:
        if "holdout" not in present(evaluation):
            return EvaluationResult(notes=["membership: the data have no holdout, so there is no membership_auc."])
        forget, holdout = (some_of(evaluation, split, self.items) for split in ("forget", "holdout"))
        records = []
        for subject in evaluation.models:
            members = -likelihoods(evaluation, subject, "forget", forget, self.draws, self.batch_size)
            others = -likelihoods(evaluation, subject, "holdout", holdout, self.draws, self.batch_size)
            n = len(members) + len(others)
            figure = auc(members, others)
            records.append(evaluation.record(AUC, subject, "forget", figure, n=n, about={"score": "loss"}))
        return EvaluationResult(records)
