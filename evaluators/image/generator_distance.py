"""How far a generator has changed: its samples against those of the target."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Record
from unlearn.core.validation import PositiveInt, Range, at_least, smallest
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import samples, seen_by
from unlearn.evaluators.statistics import Interval, frechet_ci95, inside_manifold
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.embedders import Embedder, identity_net

FRECHET = Metric(
    name="frechet_{net}",
    label="Fréchet distance ({net})",
    formula="as of `feature_distance`, between samples of a subject and samples of the target from other noise; "
    "`score: floor`: two halves of the target's own, as many each",
    direction={"retain": "lower", "floor": "none"},
    source="Heusel et al. 2017, eq. 6; against the target as in Seo et al. 2024",
)
PRECISION = Metric(
    name="precision",
    label="precision",
    formula="share of a subject's samples in the union of balls around the target's samples, each as wide as the "
    "distance to the k-th nearest neighbour among them; Wilson interval; `score: floor`: two halves of the target's "
    "own",
    unit="share",
    direction={"retain": "higher", "floor": "none"},
    source="Kynkäänniemi et al. 2019, eqs. 1 and 2",
)
RECALL = Metric(
    name="recall",
    label="recall",
    formula="the same with the two sides exchanged",
    unit="share",
    direction={"retain": "higher", "floor": "none"},
    source="Kynkäänniemi et al. 2019, eqs. 1 and 2",
)


@dataclass(frozen=True, kw_only=True)
class GeneratorDistance(Evaluator[Samples]):
    """Frechet distance, precision and recall of a subject's samples against the target's, from other noise.

    Precision is the share of the subject's samples that lie in the manifold of the target's, recall the share of the
    target's in the subject's. ``score: floor`` compares two halves of the target's own samples, as many each: an
    unchanged generator reaches it.

    Args:
        samples: number per subject, and as many again of the target for comparison.
        features: nets in whose features it is measured, by name or path (feature_extractors.embedders.identity_net); by
            default the packaged one that fits the images.
        neighbours: k of the manifolds.
        bootstraps: resamples behind the interval of the Frechet distance.
        batch_size: images at once; does not change the result.

    Reference:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, eq. 6. arXiv:1706.08500.
        Kynkäänniemi et al., Improved Precision and Recall Metric, 2019, eqs. 1 and 2. arXiv:1904.06991
    """

    samples: Annotated[int, Range(at_least, 2)] = 500
    features: list[str] | None = None
    neighbours: PositiveInt = 3
    bootstraps: Annotated[int, Range(at_least, 2)] = 20
    batch_size: PositiveInt = 32

    metrics: ClassVar = (FRECHET, PRECISION, RECALL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours >= self.samples:
            raise ValueError(f"neighbours is {self.neighbours}; it must be below samples, {self.samples}")
        if self.features is not None and not self.features:
            raise ValueError("features is empty; name at least one net, or null for the packaged one")

    @override
    def smallest(self) -> Self:
        small = smallest(self, least=2, keep=("batch_size", "samples"))
        return replace(small, samples=small.neighbours + 1)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        if "shape" in (info := splits["forget"].dataset.info):
            self._nets(info["shape"])  # refuses images that no net fits

    def _nets(self, shape: Any) -> list[Embedder]:
        return [identity_net(name, shape) for name in (self.features or (None,))]

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        drawn = {
            subject: samples(evaluation, subject, "retain", self.samples * (1 + (subject == "target")), self.batch_size)
            for subject in evaluation.models
        }
        records = []
        for net in self._nets(tuple(drawn["target"].shape[1:])):
            seen = {subject: seen_by(net, evaluation, images, self.batch_size) for subject, images in drawn.items()}
            floor, against = seen.pop("target").split(self.samples)
            records += self._records(evaluation, net, "target", floor, against)
            for subject, faces in seen.items():
                records += self._records(evaluation, net, subject, faces, against)
        return EvaluationResult(records)

    def _records(
        self, evaluation: Evaluation[Samples], net: Embedder, subject: str, a: Tensor, b: Tensor
    ) -> list[Record]:
        floor = {"score": "floor"} if subject == "target" else {}
        within = {"features": net.name, **floor}
        figures: list[tuple[Metric, dict[str, str], Tensor | tuple[float, Interval]]] = [
            (FRECHET.named(net=net.name), floor, frechet_ci95(a, b, evaluation.randomness, self.bootstraps)),
            (PRECISION, within, inside_manifold(a, b, self.neighbours)),
            (RECALL, within, inside_manifold(b, a, self.neighbours)),
        ]
        return [
            evaluation.record(metric, subject, "retain", figure, n=len(a), about=about, detector=net.detector)
            for metric, about, figure in figures
        ]
