"""MUSE's fourth criterion for images: do samples still look like, and cover, what must stay?"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import PositiveInt, Range, at_least
from unlearn.data.base import Split, check_content
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.image.feature_distance import real_ids
from unlearn.evaluators.sampling import samples, seen_by
from unlearn.evaluators.statistics import Share, inside_manifold, share_ci95
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.embedders import Embedder, identity_net
from unlearn.models.feature_extractors.networks import described

EPS = 1e-6
"""Added to deviations, of which some are 0."""

UTILITY = Metric(
    name="utility",
    label="utility",
    formula="2 P R / (P + R): P is the share of samples in the manifold of real images that must stay, R the share of "
    "those in the manifold of the samples, by the k-th nearest neighbours in what a net sees (its embedding, and mean "
    "and deviation of each channel of its layers, scaled to the real images'); 0 where one is 0. The interval takes "
    "both ends of Wilson's intervals of P and R, and is conservative",
    unit="share",
    direction="higher",
    source="Kynkäänniemi et al. 2019, eqs. 1 and 2 (precision, recall); their harmonic mean is ours",
)


@dataclass(frozen=True, kw_only=True)
class ImageUtility(Evaluator[Samples]):
    """Harmonic mean of precision and recall of samples against the real images that must stay.

    A model that draws noise has no precision, one that always draws the same no recall; neither has utility. The
    embedding of a classifier alone would not see it: it maps noise among the digits. Samples of conditional models are
    conditioned on retain items.

    Args:
        samples: per subject.
        items: at most this many real images, drawn by the seed; null takes all.
        features: net that sees the images (feature_extractors.embedders.identity_net), of a TorchScript file the
            embedding alone; by default the packaged one that fits them.
        neighbours: k of the manifolds.
        batch_size: images at once; does not change the result.

    Reference:
        Kynkäänniemi et al., Improved Precision and Recall Metric, 2019, eqs. 1 and 2. arXiv:1904.06991
    """

    samples: Annotated[int, Range(at_least, 8)] = 500
    items: Annotated[int, Range(at_least, 8)] | None = 500
    features: str | None = None
    neighbours: PositiveInt = 3
    batch_size: PositiveInt = 256

    metrics: ClassVar = (UTILITY,)
    tried_on: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours >= min(self.samples, self.items or self.samples):
            raise ValueError(f"neighbours is {self.neighbours}; it must be below samples and items")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        check_content(splits["retain"], "evaluate: utility", "Type evaluate.NAME=null.")
        if "shape" in (info := splits["forget"].dataset.info):
            identity_net(self.features, info["shape"])  # refuses images that no net fits

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        ids = real_ids(evaluation.splits)
        ids = ids[evaluation.randomness.child("real").permutation(len(ids))[: self.items]]
        images = evaluation.splits["retain"].batch(ids)["image"]
        net = identity_net(self.features, tuple(images.shape[1:]))
        look = partial(seen_by, partial(seen, net), evaluation, batch_size=self.batch_size)
        real = look(images)
        mean, deviation = real.mean(dim=0), real.std(dim=0) + EPS
        real, records = (real - mean) / deviation, []
        for subject in evaluation.models:
            drawn = (look(samples(evaluation, subject, "retain", self.samples, self.batch_size)) - mean) / deviation
            figure = harmonic(
                share_ci95(inside_manifold(drawn, real, self.neighbours)),
                share_ci95(inside_manifold(real, drawn, self.neighbours)),
            )
            records.append(evaluation.record(UTILITY, subject, "retain", figure, n=self.samples, detector=net.detector))
        return EvaluationResult(records)


def seen(net: Embedder, images: Tensor) -> Tensor:
    """Return what a net sees in images (n, C, H, W) in [-1, 1], (n, D)."""
    return net(images) if isinstance(net.network, torch.jit.ScriptModule) else described(net.network, images)


def harmonic(a: Share, b: Share) -> Share:
    """Return the harmonic mean of two shares, 0 where one is 0; it rises with both, and so do the ends."""

    def mean(one: float, other: float) -> float:
        return 2 * one * other / (one + other) if one and other else 0.0

    (first, (low_a, high_a)), (second, (low_b, high_b)) = a, b
    return mean(first, second), (mean(low_a, low_b), mean(high_a, high_b))
