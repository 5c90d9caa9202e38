"""Relearning of images: whether fine-tuning on a few forget images restores the concept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.records import Record
from unlearn.core.validation import PositiveInt, Range, distinct
from unlearn.data.base import Split
from unlearn.evaluators.attacks.base.relearning import Relearning
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.evaluators.image.concept_classifier import concept_classifier
from unlearn.evaluators.sampling import drawn, sampled_clusters, sampled_items
from unlearn.models.diffusion.protocols import TrainableDenoiser

ATTACK = Metric(
    name="attack_relearning",
    label="attack by relearning",
    formula="share of samples of forget items in which the classifier sees the concept, drawn by a copy that was "
    "trained on `k items, n steps` (`budget`) of forget images. Wilson interval",
    unit="share",
    direction="retrained",
    source="after Suriyakumar et al. 2024",
)


@dataclass(frozen=True, kw_only=True)
class ImageRelearning(Relearning[TrainableDenoiser]):
    """Trains a copy of every subject on k forget images and asks a classifier how many samples show the concept.

    If it needs fewer steps than a model that never saw the concept, the concept was hidden, not forgotten. Samples are
    conditioned on forget items, from the same noise as in every other evaluator. One-step generators are skipped: they
    are trained on the score of another model, not on images.

    Args:
        samples: samples per measurement.
        features: feature net that classifies samples: packaged, or the folder of one; by default what fits the data.

    Reference:
        Suriyakumar et al., Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion
        Models, 2024. arXiv:2410.08074; here the copy is trained on the forgotten images themselves, not on others.
    """

    steps: Annotated[list[int], Range(distinct, 0)] = field(default_factory=lambda: [0, 10, 50])
    batch: PositiveInt = 16
    batch_size: PositiveInt = 256
    samples: PositiveInt = 100
    features: str | None = None

    metrics: ClassVar = (ATTACK,)
    what: ClassVar[str] = "share of samples that show the concept"

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        concept_classifier(splits, self.features)  # refuses data that no net fits
        forget = splits["forget"]
        n = len(forget) if "image" in forget.batch(forget.ids[:1]) else 0
        if n < max(self.items):
            raise RecipeError(
                f"evaluate.image_relearning trains on {max(self.items)} forget images, but there are {n}. "
                "Type evaluate.image_relearning.items=[1], or leave it out: evaluate.image_relearning=null."
            )

    @override
    def trainable(self, model: TrainableDenoiser) -> bool:
        return model.settings.one_step is None

    @override
    def measure(
        self,
        evaluation: Evaluation[TrainableDenoiser],
        subject: str,
        copy: TrainableDenoiser,
        ids: Tensor,
        others: Tensor,
        budget: str,
    ) -> list[Record]:
        classifier = concept_classifier(evaluation.splits, self.features, evaluation.device)
        items = sampled_items(evaluation, "forget", self.samples)
        images = drawn(evaluation, copy, "forget", items, self.batch_size)
        hits, about = classifier.seen(images, items), {"score": "accuracy", "budget": budget}
        clusters = sampled_clusters(evaluation, "forget", self.samples)
        add = partial(evaluation.record, clusters=clusters, detector=classifier.net.detector)
        return [add(ATTACK, subject, "forget", hits, about=about)]
