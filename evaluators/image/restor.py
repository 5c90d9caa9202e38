"""Restoration of images: does unlearning images made wrong bring back what was drawn before?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.conditioned import Conditioned
from unlearn.data.corrupted_images import CorruptedImages
from unlearn.data.corruption import CORRUPTED
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.restoration import ACCURACY, FORGETTING, MARGIN, RATIO, restoration
from unlearn.evaluators.sampling import is_conditional, limited, sampled_clusters, samples
from unlearn.models.capabilities import RecallingSampler
from unlearn.models.feature_extractors.classifiers import Features, features_for

DRAWN = replace(
    ACCURACY,
    name="drawn_right",
    label="what was made wrong, drawn right",
    formula="share of samples that show what was made wrong as it was: the label by a classifier, without the mark, of "
    "samples conditioned on it or of all samples of an unconditional model. Wilson interval, clustered by prompt",
    source="ours, after Rezaei et al. 2025",
)
LIKELIER = replace(
    MARGIN,
    formula="mean over items of the loss of the wrong image less that of the right one, with the same noise (see "
    "`privleak`); positive where the right one is likelier",
    unit="",
    source="ours, after Rezaei et al. 2025",
)


@dataclass(frozen=True, kw_only=True)
class ImageRestor(Evaluator[RecallingSampler]):
    """Judges samples of the clean, the corrupted (the target) and the unlearned model.

    A sample is right if it shows what was made wrong as it was, and wrong if it shows the mark or the image that was
    put in its place.

    Args:
        samples: per subject.
        items: images whose losses are compared, at most, drawn by the seed; null takes all.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data.
        batch_size: images at once; does not change the result.

    Reference:
        Rezaei et al., RESTOR: Knowledge Recovery in Machine Unlearning, 2025. arXiv:2411.00204, for texts.
    """

    samples: PositiveInt = 500
    items: PositiveInt | None = 100
    features: str | None = None
    batch_size: PositiveInt = 256

    metrics: ClassVar = (DRAWN, RATIO, FORGETTING, LIKELIER)
    subjects: ClassVar[tuple[str, ...]] = ("clean",)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        wrong = corrupted_images(splits)
        features_for(wrong.info, self.features)
        if wrong.corruption.transform == "exchange" and not is_conditional(splits["forget"]):
            raise RecipeError(
                "data.corruption.transform=exchange shows other images where a label is asked for, and this model is "
                "not asked. Type data.corruption.transform=stamp data.corruption.instead=null."
            )

    @override
    def __call__(self, evaluation: Evaluation[RecallingSampler]) -> EvaluationResult:
        wrong = corrupted_images(evaluation.splits)
        net = features_for(wrong.info, self.features).to(evaluation.device)
        ids = limited(evaluation.splits["probe"].ids, self.items, evaluation.seed, "restor")
        conditional = is_conditional(evaluation.splits["forget"])
        split = "probe" if conditional else ""
        right_by, wrong_by, margins = {}, {}, {}
        for subject in evaluation.models:  # the outer loop: each is moved to the device once
            name = "corrupted" if subject == "target" else subject
            drawn = samples(evaluation, subject, split, self.samples, self.batch_size)
            right_by[name], wrong_by[name] = judged(net, wrong, drawn)
            margins[name] = self._losses(evaluation, subject, ids, CORRUPTED) - self._losses(evaluation, subject, ids)
        clusters = sampled_clusters(evaluation, split, self.samples) if conditional else None
        records = restoration(evaluation, right_by, wrong_by, "samples", clusters, DRAWN)
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


def judged(net: Features, wrong: CorruptedImages, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether images (n, C, H, W) uint8 show what was made wrong as it was, and whether they show it wrong."""
    answers = net.classify(images)

    def shows(names: list[str]) -> Tensor:
        numbers = [net.labels.index(name) for name in names if name in net.labels]
        return torch.isin(answers, torch.tensor(numbers, dtype=torch.int64)).any(dim=1)

    asked = shows(wrong.corruption.label)
    if wrong.corruption.transform == "stamp":
        marked = wrong.has_mark(images)
        return asked & ~marked, marked
    return asked, shows([wrong.corruption.instead]) & ~asked
