"""Restoration of images: does unlearning images made wrong bring back what was drawn before?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.randomness import Randomness
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.conditioned import Conditioned
from unlearn.data.corrupted_images import CorruptedImages
from unlearn.data.corruption import CORRUPTED
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.restoration import ACCURACY, FORGETTING, MARGIN, RATIO, restoration
from unlearn.evaluators.sampling import is_conditional, limited, sampled_clusters, samples
from unlearn.evaluators.statistics import inside_manifold
from unlearn.models.capabilities import RecallingSampler
from unlearn.models.feature_extractors.classifiers import CHUNK, Features, features_for
from unlearn.models.feature_extractors.networks import Stages, described

DRAWN = replace(
    ACCURACY,
    name="drawn_right",
    label="what was made wrong, drawn right",
    formula="r / max(s, s_clean): s is the share of samples (of those conditioned on what was made wrong, or of all of "
    "an unconditional model) that show it, r of those that show it as it was. What a sample shows is a classifier's "
    "answer, if it lies in the manifold of the real right and wrong images (k-th nearest neighbour in what the "
    "classifier's layers see), so that noise shows nothing; with a mark it is wrong. Bootstrap interval, clustered by "
    "prompt",
    source="ours, after Rezaei et al. 2025",
)
LIKELIER = replace(
    MARGIN,
    formula="mean over items of the loss of the wrong image less that of the right one, with the same noise (see "
    "`privleak`); positive where the right one is likelier",
    unit="",
    source="ours, after Rezaei et al. 2025",
)

EPS = 1e-6
"""Added to deviations, of which some are 0."""

KNOWN = 1000
"""Number of real images, right and wrong each, that make the manifold, at most."""


@dataclass(frozen=True, kw_only=True)
class ImageRestor(Evaluator[RecallingSampler]):
    """Judges samples of the clean, the corrupted (the target) and the unlearned model.

    A sample is right if it shows what was made wrong as it was, and wrong if it shows the mark or what was put in its
    place. The share of right ones is taken among the samples that show what was made wrong at all, or among as many as
    the clean model draws if those are more: a corrupted model that draws it more often is not right for that, and a
    model that draws it no more, or noise, has brought nothing back.

    Args:
        samples: per subject.
        items: images whose losses are compared, at most, drawn by the seed; null takes all.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data.
        neighbours: k of the manifold of real images.
        batch_size: images at once; does not change the result.

    Reference:
        Rezaei et al., RESTOR: Knowledge Recovery in Machine Unlearning, 2025. arXiv:2411.00204, for texts.
    """

    samples: PositiveInt = 500
    items: PositiveInt | None = 100
    features: str | None = None
    neighbours: PositiveInt = 10
    batch_size: PositiveInt = 256

    metrics: ClassVar = (DRAWN, RATIO, FORGETTING, LIKELIER)
    subjects: ClassVar[tuple[str, ...]] = ("clean",)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        wrong = corrupted_images(splits)
        net, how = features_for(wrong.info, self.features), wrong.corruption
        for name in (*how.label, *filter(None, [how.instead])):
            if name not in net.labels:
                raise RecipeError(
                    f"evaluate: restoration asks whether samples show {name!r}, and the feature net {net.name} does "
                    f"not know it. {did_you_mean(name, net.labels)}"
                )
        if wrong.corruption.transform == "exchange" and not is_conditional(splits["forget"]):
            raise RecipeError(
                "data.corruption.transform=exchange shows other images where a label is asked for, and this model is "
                "not asked. Type data.corruption.transform=stamp data.corruption.instead=null."
            )

    @override
    def __call__(self, evaluation: Evaluation[RecallingSampler]) -> EvaluationResult:
        wrong = corrupted_images(evaluation.splits)
        net = features_for(wrong.info, self.features).to(evaluation.device)
        judge = Judge.of(net, wrong, self.neighbours)
        ids = limited(evaluation.splits["probe"].ids, self.items, evaluation.seed, "restor")
        conditional = is_conditional(evaluation.splits["forget"])
        split = "probe" if conditional else ""
        judged, margins = {}, {}
        for subject in evaluation.models:  # the outer loop: each is moved to the device once
            name = "corrupted" if subject == "target" else subject
            judged[name] = judge(samples(evaluation, subject, split, self.samples, self.batch_size))
            margins[name] = self._losses(evaluation, subject, ids, CORRUPTED) - self._losses(evaluation, subject, ids)
        clusters = sampled_clusters(evaluation, split, self.samples) if conditional else None
        right, asked, false = ({name: found[place] for name, found in judged.items()} for place in range(3))
        records = restoration(evaluation, right, false, "samples", clusters, asked, DRAWN)
        own = evaluation.clusters(ids)
        for name, margin in margins.items():
            records.append(evaluation.record(LIKELIER, name, "probe", margin, about={"score": "margin"}, clusters=own))
        return EvaluationResult(records)

    def _losses(self, evaluation: Evaluation[RecallingSampler], subject: str, ids: Tensor, form: str = "") -> Tensor:
        """Return the losses of items (n,) in a form, (n,) float64 on the CPU."""
        model, stream = evaluation.models[subject], Randomness(evaluation.seed, "recall")

        def loss(part: Tensor) -> Tensor:
            return model.recall(evaluation.batch("probe", part, form), stream).loss

        return map_ids(loss, ids.to(evaluation.device), self.batch_size).double().cpu()


def corrupted_images(splits: Mapping[str, Split]) -> CorruptedImages:
    """Return the data with its wrong images. Raises RecipeError where there are none."""
    data = splits["forget"].dataset
    data = data.base if isinstance(data, Conditioned) else data
    if not isinstance(data, CorruptedImages) or "probe" not in splits:
        raise RecipeError(
            "evaluate: restoration asks for images that were made wrong, and the data has none. Type "
            "data.corruption.label=[NAME] corrupt.optim.steps=100, or evaluate.NAME=null."
        )
    return data


class Judged(NamedTuple):
    """What images show, (n,) bool each.

    Attributes:
        right: what was made wrong, as it was.
        asked: what was made wrong, right or with a mark.
        wrong: the mark, or what was put in its place.
    """

    right: Tensor
    asked: Tensor
    wrong: Tensor


@dataclass(frozen=True)
class Judge:
    """Tells right from wrong images.

    Attributes:
        net: names what images show.
        data: whose images were made wrong.
        real: right and wrong ones as the net sees them, (m, D), scaled by
        mean: their mean, (D,), and
        deviation: their deviation, (D,).
        neighbours: k of their manifold.
    """

    net: Features
    data: CorruptedImages
    real: Tensor
    mean: Tensor
    deviation: Tensor
    neighbours: int

    @classmethod
    def of(cls, net: Features, data: CorruptedImages, neighbours: int) -> Self:
        """Return a judge that knows the right and wrong images of the data, or some of many."""
        ids = limited(data.contradicted, KNOWN, 0, "judge")
        both = data.batch(ids)["image"], data.form(CORRUPTED, ids)["image"]
        real = seen(net, torch.cat(both))
        mean, deviation = real.mean(dim=0), real.std(dim=0) + EPS
        return cls(net, data, (real - mean) / deviation, mean, deviation, neighbours)

    def __call__(self, images: Tensor) -> Judged:
        """Judge images (n, C, H, W) uint8."""
        points = (seen(self.net, images) - self.mean) / self.deviation
        real = inside_manifold(points, self.real, self.neighbours)
        answers, how = self.net.classify(images), self.data.corruption

        def shows(names: list[str]) -> Tensor:
            numbers = torch.tensor([self.net.labels.index(name) for name in names])
            return real & torch.isin(answers, numbers).any(dim=1)

        asked = shows(how.label)
        if how.transform == "stamp":
            marked = self.data.has_mark(images)
            return Judged(asked & ~marked, asked, marked)
        return Judged(asked, asked, shows([how.instead]) & ~asked)


def seen(net: Features, images: Tensor) -> Tensor:
    """Return what the layers of a net see in images (n, C, H, W) uint8, (n, D) on the CPU."""
    device, stages = net.network.head.weight.device, Stages(net.network)
    with torch.no_grad():
        return torch.cat([described(stages, net.inputs(part.to(device))).cpu() for part in images.split(CHUNK)])
