"""Distance between samples and the real images that should be kept, in the features of a small net."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.records import Record
from unlearn.core.validation import PositiveInt, Range, at_least
from unlearn.data.base import Split, check_content
from unlearn.data.splits import forgotten_names
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import samples
from unlearn.evaluators.statistics import Interval, frechet_ci95, kernel_distance
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.classifiers import Features, ScriptedFeatures, embedder_for

FRECHET = Metric(
    name="frechet_{net}",
    label="Fréchet distance ({net})",
    formula="|m_s - m_r|² + tr(S + R - 2 (S^½ R S^½)^½), with mean and covariance of the features of samples and of "
    "real images; interval from the spread over bootstrap resamples. `score: floor`: two halves of the real images",
    direction={"retain": "lower", "floor": "none"},
    source="Heusel et al. 2017, eq. 6",
)
KERNEL = Metric(
    name="kernel_{net}",
    label="kernel distance ({net})",
    formula="unbiased squared MMD with k(x, y) = (x·y / D + 1)³ over all pairs; interval from the variance of the "
    "U-statistic. `score: floor`: two halves of the real images, without an interval, as that variance does not hold",
    direction={"retain": "lower", "floor": "none"},
    source="Binkowski et al. 2018, section 4",
)


@dataclass(frozen=True, kw_only=True)
class FeatureDistance(Evaluator[Samples]):
    """Frechet and kernel distance of samples to real retain and test images without the forgotten categories.

    Samples of conditional models are conditioned on retain items.

    Both carry the name of the net, as they are not comparable with the FID and KID of an Inception net. The records
    with ``score: floor`` compare two halves of the real images: the value that chance alone gives.

    Args:
        samples: samples per subject.
        items: at most this many real images, drawn by the seed; null takes all.
        features: packaged feature net, the folder of one, or a TorchScript file that embeds images (an Inception net,
            say: ``feature_extractors.classifiers.ScriptedFeatures``); by default the packaged one that fits the data.
        bootstraps: resamples behind the interval of the Frechet distance.
        batch_size: images at once; does not change the result.
    """

    samples: Annotated[int, Range(at_least, 2)] = 2000
    items: Annotated[int, Range(at_least, 4)] | None = 2000
    features: str | None = None
    bootstraps: Annotated[int, Range(at_least, 2)] = 50
    batch_size: PositiveInt = 256

    metrics: ClassVar = (FRECHET, KERNEL)
    tried_on: ClassVar[int] = 4

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        check_content(splits["retain"], "evaluate.feature_distance", "Type evaluate.feature_distance=null.")
        self._net(splits)

    def _net(self, splits: Mapping[str, Split]) -> Features | ScriptedFeatures:
        """Return the net. Raises RecipeError where none fits the data; needs no model."""
        net = embedder_for(splits["forget"].dataset.info, self.features)
        if (n := len(real_ids(splits))) < 4:
            raise RecipeError(
                f"feature_distance compares with real images that are not forgotten; there are {n}, and 4 are needed. "
                "Narrow data.forget, or drop it: evaluate.feature_distance=null."
            )
        return net

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        net = self._net(evaluation.splits).to(evaluation.device)
        ids = real_ids(evaluation.splits)
        ids = ids[evaluation.randomness.child("real").permutation(len(ids))[: self.items]]
        real = map_ids(lambda part: net.embed(evaluation.batch("retain", part)["image"]), ids, self.batch_size).cpu()
        records = []
        for subject in evaluation.models:
            drawn = samples(evaluation, subject, "retain", self.samples, self.batch_size)
            records += self._compare(evaluation, net, subject, {}, net.embed(drawn), real)
        halves = real[::2], real[1::2]  # the order is random
        records += self._compare(evaluation, net, "target", {"score": "floor"}, *halves)
        return EvaluationResult(records)

    def _compare(
        self,
        evaluation: Evaluation[Samples],
        net: Features | ScriptedFeatures,
        subject: str,
        about: dict[str, str],
        a: Tensor,
        b: Tensor,
    ) -> list[Record]:
        kernel: tuple[float, Interval] = kernel_distance(a, b)
        if about:  # both sides come from one distribution, where the U-statistic's variance is not of first order
            kernel = kernel[0], None
        figures = ((FRECHET, frechet_ci95(a, b, evaluation.randomness, self.bootstraps)), (KERNEL, kernel))
        return [
            evaluation.record(
                metric.named(net=net.name), subject, "retain", figure, n=len(a), about=about, detector=net.detector
            )
            for metric, figure in figures
        ]


def real_ids(splits: Mapping[str, Split]) -> Tensor:
    """Return the ids of the retain and test items that carry no forgotten label or attribute."""
    dataset = splits["retain"].dataset
    ids = torch.cat([splits[name].ids for name in ("retain", "test") if name in splits])
    gone = torch.zeros(len(dataset), dtype=torch.bool)
    for name in forgotten_names(splits["forget"]):
        gone |= dataset.having([name])
    return ids[~gone[ids]]
