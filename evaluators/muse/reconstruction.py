"""MUSE's first criterion for images: is an item drawn again from a part of what it holds?"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Picture
from unlearn.core.validation import NonNegativeInt
from unlearn.evaluators.base import Evaluation, EvaluationResult, Metric
from unlearn.evaluators.figures import Panel, panels
from unlearn.evaluators.image.face_verification import SimilarityScale
from unlearn.evaluators.muse.recalled_items import RecallEvaluator
from unlearn.evaluators.sampling import grey_levels, item_rows, seen_by
from unlearn.models.capabilities import Recalls
from unlearn.models.feature_extractors.embedders import identity_net

MEMORIZATION = Metric(
    name="verbatim_memorization",
    label="verbatim memorization",
    formula="mean over items of the similarity 1 - d / m between an item and what the model draws again from a part of "
    "it (`level`: a flow around its latent at a reduced temperature, a GAN by inversion, a diffusion model from a "
    "noised copy); d is the distance of a feature net, m its mean over pairs of retain items. 1 is the item itself, 0 "
    "another one",
    direction={"forget": "retrained", "retain": "higher", "holdout": "retrained"},
    source="ours, after Shi et al. 2024 (MUSE), criterion 1",
)


@dataclass(frozen=True, kw_only=True)
class ImageMemorization(RecallEvaluator):
    """How like an item is what a model draws again from a part of it; compare forget with holdout items.

    Args:
        features: net that compares images (feature_extractors.embedders.identity_net); by default the packaged one
            that fits them.
        shown: number of forget items in the picture; 0 for none.
    """

    features: str | None = None
    shown: NonNegativeInt = 8

    metrics: ClassVar = (MEMORIZATION,)

    @override
    def __call__(self, evaluation: Evaluation[Recalls]) -> EvaluationResult:
        items = self.chosen(evaluation)
        real = {split: evaluation.splits[split].batch(ids)["image"] for split, ids in items.items()}
        net = identity_net(self.features, tuple(real["forget"].shape[1:]))
        seen = {split: seen_by(net, evaluation, images, self.batch_size) for split, images in real.items()}
        scale = SimilarityScale.of(net, seen.get("retain", seen["forget"]))
        result, drawn = EvaluationResult(), {}
        for subject in evaluation.models:
            for split, ids in items.items():
                images, _, levels = self.recalled(evaluation, subject, split, ids)
                if split == "forget":
                    drawn[subject] = images[:, : self.shown]
                add = partial(evaluation.record, clusters=evaluation.clusters(ids), detector=net.detector)
                for level, found in zip(levels, images, strict=True):
                    values = scale.similarity(seen_by(net, evaluation, found, self.batch_size), seen[split])
                    about = {"level": level, "features": net.name}
                    result.records.append(add(MEMORIZATION, subject, split, values, about=about))
                    if level == levels[-1]:
                        result.items.extend(item_rows(subject, split, ids, MEMORIZATION.name, values))
        if self.shown:
            result.pictures.append(_picture(evaluation, real["forget"][: self.shown], drawn))
        return result


def _picture(evaluation: Evaluation[Recalls], real: Tensor, drawn: dict[str, Tensor]) -> Picture:
    levels = grey_levels(evaluation)
    content = [Panel("forget items", real, levels)]
    for subject, images in drawn.items():
        content.append(Panel(f"{subject}, drawn again", torch.cat(list(images)), levels))
    caption = (
        "Forget items, and what each model draws again from a part of them, one row per level (more is withheld "
        "further down). A model that never saw them draws others like them."
    )
    return Picture("recalled", "What is drawn again", caption, panels(content, columns=len(real), stacked=True))
