"""Membership inference: does the likelihood distinguish forgotten items from items never trained on?"""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from unlearn.evaluators.base import Evaluation, EvaluationResult, Metric
from unlearn.evaluators.likelihood.base import LikelihoodEvaluator
from unlearn.evaluators.per_item import Separation
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
class Membership(LikelihoodEvaluator):
    """Area under the ROC curve of the attack that calls the likelier items members: forget against holdout.

    0.5 is no leak, 1 is a perfect attack. Below 0.5 the forget items became less likely than unseen ones, which
    reveals them too: compare with the retrained model's value. The interval is DeLong's.

    Reference:
        Yeom et al., Privacy Risk in Machine Learning, 2018, section 3.1. arXiv:1709.01604
    """

    metrics: ClassVar = (AUC,)

    @override
    def __call__(self, evaluation: Evaluation[HasLikelihood]) -> EvaluationResult:
        ids = self.chosen(evaluation)
        if "holdout" not in ids:
            return EvaluationResult(notes=["membership: the data have no holdout, so there is no membership_auc."])
        clusters = evaluation.clusters(ids["forget"]), evaluation.clusters(ids["holdout"])
        records = []
        for subject in evaluation.models:
            members, others = (-self.bits(evaluation, subject, split, ids[split]) for split in ("forget", "holdout"))
            scores = Separation(members, others, clusters)
            records.append(evaluation.record(AUC, subject, "forget", scores, about={"score": "loss"}))
        return EvaluationResult(records)
