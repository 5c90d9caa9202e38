"""MUSE's third criterion for images: does the loss tell forgotten items from items never trained on?"""

from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from unlearn.evaluators.base import Evaluation, EvaluationResult, Metric
from unlearn.evaluators.muse.recalled_items import RecallEvaluator
from unlearn.evaluators.per_item import Separation, privleak
from unlearn.evaluators.statistics import detected
from unlearn.evaluators.text.membership import DETECTED
from unlearn.models.capabilities import Recalls

PRIVLEAK = Metric(
    name="privleak",
    label="PrivLeak",
    formula="100 (A - A_r) / A_r, A = P(a holdout item has a lower loss than a forget item), A_r that of the retrained "
    "model. The loss is bits/dim of a flow, the denoising loss over fixed timesteps and noise of a diffusion model, "
    "the error of an inversion of a GAN. -100: the forget items are remembered; positive: they are less likely than "
    "unseen ones. Interval linearised, with the covariance of the two",
    unit="%",
    direction="zero",
    source="Shi et al. 2024 (MUSE), section 3.1, with the family's likelihood in place of Min-K",
)
AUC = Metric(
    name="privacy_auc",
    label="membership inference AUC",
    formula="P(a forget item has a lower loss than a holdout item) + P(tie) / 2; the loss as of `privleak`; DeLong's "
    "interval",
    direction="retrained",
    source="Yeom et al. 2018, section 3.1; DeLong et al. 1988",
)
FOUND = replace(DETECTED, formula=DETECTED.formula.replace("a higher score", "a lower loss"))


@dataclass(frozen=True, kw_only=True)
class ImagePrivacy(RecallEvaluator):
    """PrivLeak, AUC and the true positive rate at 1 % false positives of the attack that calls low losses members.

    Reference:
        Shi et al., MUSE, 2024, section 3.1. arXiv:2407.06460.
        Carlini et al., Membership Inference Attacks From First Principles, 2022, section 3. arXiv:2112.03570
    """

    metrics: ClassVar = (PRIVLEAK, AUC, FOUND)

    @override
    def __call__(self, evaluation: Evaluation[Recalls]) -> EvaluationResult:
        items = self.chosen(evaluation)
        if "holdout" not in items:
            return EvaluationResult(notes=["privacy: the data have no holdout, so there is no privleak."])
        clusters = evaluation.clusters(items["forget"]), evaluation.clusters(items["holdout"])
        found = {}
        for subject in evaluation.models:
            losses = (self.recalled(evaluation, subject, split, items[split]).loss for split in ("forget", "holdout"))
            members, others = (-loss for loss in losses)
            found[subject] = Separation(members, others, clusters)
        records = []
        for subject, scores in found.items():
            records.append(evaluation.record(AUC, subject, "forget", scores))
            hits = detected(scores.members, scores.others)
            records.append(evaluation.record(FOUND, subject, "forget", hits, clusters=clusters[0]))
            if "retrained" in found and subject != "retrained":
                figure = privleak(scores, found["retrained"])
                records.append(evaluation.record(PRIVLEAK, subject, "forget", figure, n=len(scores)))
        return EvaluationResult(records)
