"""Share of samples in which a classifier sees an attribute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import samples, seen_by
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.embedders import Attributes, attribute_net

SHARE = Metric(
    name="attribute_share",
    label="attribute share",
    formula="share of samples that show `category` to the classifier in `features` with a probability of `threshold` "
    "or more; Wilson interval",
    unit="share",
    direction={"forget": "lower", "retain": "retrained"},
    otherwise="`none` where no attribute is named",
    source="Wilson 1927",
)


@dataclass(frozen=True, kw_only=True)
class AttributeShare(Evaluator[Samples]):
    """Share of samples, from the same noise for every subject, in which a classifier sees an attribute.

    Args:
        attributes: the classifier's labels to forget (split forget); its other labels are also reported (split
            retain).
        features: a classifier by name or path (feature_extractors.embedders.attribute_net); by default the packaged one
            that fits the images.
        threshold: least probability at which an image counts as showing it.
        samples: number per subject.
        batch_size: images at once; does not change the result.
    """

    attributes: list[str] = field(default_factory=list)
    features: str | None = None
    threshold: float = 0.5
    samples: PositiveInt = 500
    batch_size: PositiveInt = 32

    metrics: ClassVar = (SHARE,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must lie between 0 and 1")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        if "shape" in (info := splits["forget"].dataset.info):
            self._net(info["shape"])  # refuses images that no net fits, and unknown attributes

    def _net(self, shape: Any) -> Attributes:
        net = attribute_net(self.features, shape)
        for name in self.attributes:
            if name not in net.labels:
                raise RecipeError(f"The classifier {net.name} knows no {name!r}. {did_you_mean(name, net.labels)}")
        return net

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        records = []
        for subject in evaluation.models:
            images = samples(evaluation, subject, "retain", self.samples, self.batch_size)
            net = self._net(tuple(images.shape[1:]))
            shown = seen_by(net, evaluation, images, self.batch_size) >= self.threshold  # (n, K)
            for label, hits in zip(net.labels, shown.unbind(dim=1), strict=True):
                records.append(
                    evaluation.record(
                        SHARE,
                        subject,
                        "forget" if label in self.attributes else "retain",
                        hits,
                        about={"category": label, "features": net.name},
                        direction=None if self.attributes else "none",
                        detector={**net.detector, "threshold": f"{self.threshold:g}"},
                    )
                )
        return EvaluationResult(records)
