"""MUSE's second criterion for images: do samples show what was forgotten?"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.splits import forgotten_names
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.image.concept_classifier import concept_classifier
from unlearn.evaluators.sampling import is_conditional, sampled_clusters, sampled_items, samples
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.classifiers import Features, features_for

PRESENCE = Metric(
    name="knowledge_memorization",
    label="knowledge memorization",
    formula="share of samples in which the classifier sees what is forgotten: of samples conditioned on forget items, "
    "or of all samples of an unconditional model. Wilson interval, clustered by prompt",
    unit="share",
    direction="retrained",
    source="ours, after Shi et al. 2024 (MUSE), criterion 2; of conditional models as `accuracy` on forget",
)


@dataclass(frozen=True, kw_only=True)
class ImagePresence(Evaluator[Samples]):
    """Share of samples that show what is forgotten.

    Args:
        samples: per subject.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data.
        batch_size: samples drawn at once; does not change the result.
    """

    samples: PositiveInt = 500
    features: str | None = None
    batch_size: PositiveInt = 256

    metrics: ClassVar = (PRESENCE,)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        if is_conditional(splits["forget"]):
            concept_classifier(splits, self.features)
        elif not _forgotten(splits["forget"], features_for(splits["forget"].dataset.info, self.features)):
            raise RecipeError(
                "evaluate: whether samples show what is forgotten asks for a whole category that is forgotten, and "
                "this data forgets none. Type data.forget.label=[NAME], or evaluate.NAME=null."
            )

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        conditional = is_conditional(evaluation.splits["forget"])
        split = "forget" if conditional else ""
        records = []
        for subject in evaluation.models:
            drawn = samples(evaluation, subject, split, self.samples, self.batch_size)
            hits, net = self._judged(evaluation, drawn, conditional)
            clusters = sampled_clusters(evaluation, split, self.samples) if conditional else None
            add = partial(evaluation.record, clusters=clusters, detector=net.detector)
            records.append(add(PRESENCE, subject, "forget", hits))
        return EvaluationResult(records)

    def _judged(self, evaluation: Evaluation[Samples], drawn: Tensor, conditional: bool) -> tuple[Tensor, Features]:
        """Return whether each sample shows what is forgotten, (n,) bool, and the net that says so."""
        if conditional:
            judge = concept_classifier(evaluation.splits, self.features, evaluation.device)
            return judge.seen(drawn, sampled_items(evaluation, "forget", len(drawn))), judge.net
        net = features_for(evaluation.splits["forget"].dataset.info, self.features).to(evaluation.device)
        return shows_forgotten(net, evaluation.splits["forget"], drawn), net


def shows_forgotten(net: Features, forget: Split, images: Tensor) -> Tensor:
    """Return whether a net sees a forgotten category in images (n, C, H, W) uint8, (n,) bool."""
    numbers = torch.tensor([net.labels.index(name) for name in _forgotten(forget, net)], dtype=torch.int64)
    return torch.isin(net.classify(images), numbers).any(dim=1)


def _forgotten(forget: Split, net: Features) -> list[str]:
    return [name for name in forgotten_names(forget) if name in net.labels]
