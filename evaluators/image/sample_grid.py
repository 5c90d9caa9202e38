"""Pictures: samples of all models from the same noise, and the forget images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.records import Picture
from unlearn.core.validation import NonNegativeInt, PositiveInt
from unlearn.data.base import Split
from unlearn.data.splits import forgotten_names
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.figures import CELL, LARGE_CELL, Panel, panels
from unlearn.evaluators.sampling import grey_levels, sampled_splits, samples, some_of
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.classifiers import Features, features_for

STRIP = 24
"""Images per row of the pictures that are one strip wide."""


@dataclass(frozen=True, kw_only=True)
class SampleGrid(Evaluator[Samples]):
    """Samples from the same noise side by side; a frame marks those classified as a forgotten category.

    Conditional models have one picture of samples conditioned on forget items and one on retain items, from the same
    noise.

    Args:
        side: images per row and column of each grid.
        search: number of samples of the target among which those of the forgotten category are searched; 0 leaves out
            that picture, which conditional models do not have.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data; without
            one there are no frames.
        batch_size: samples drawn at once; does not change the result.
    """

    side: PositiveInt = 8
    search: NonNegativeInt = 2000
    features: str | None = None
    batch_size: PositiveInt = 256

    @override
    def smallest(self) -> Self:
        return replace(super().smallest(), side=1)  # side^2 images each

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        if self.features is not None:
            features_for(splits["forget"].dataset.info, self.features)

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        forget = evaluation.splits["forget"]
        net = self._net(evaluation)
        forgotten = [name for name in forgotten_names(forget) if net is not None and name in net.labels]
        given = sampled_splits(evaluation)
        # the grids first: they refuse models that draw no images
        grids = [self._grids(evaluation, net, forgotten, split) for split in given]
        pictures = [*self._forget_items(evaluation), *grids]
        if net is not None and forgotten and self.search and given == ("",):
            pictures += self._became(evaluation, net, forgotten)
        return EvaluationResult(pictures=pictures)

    def _net(self, evaluation: Evaluation[Samples]) -> Features | None:
        try:
            return features_for(evaluation.splits["forget"].dataset.info, self.features).to(evaluation.device)
        except RecipeError:
            if self.features is not None:
                raise
            return None

    def _forget_items(self, evaluation: Evaluation[Samples]) -> list[Picture]:
        """Return the picture of the forget images, if there are any."""
        split = evaluation.splits["forget"]
        ids = some_of(evaluation, "forget", 3 * STRIP)
        items = split.batch(ids)
        if "image" not in items:
            return []
        whole = "forget image" if len(split) == 1 else "forget images"
        title = f"{len(ids)} of {len(split)} {whole}" if len(ids) < len(split) else f"{len(ids)} {whole}"
        cell = CELL if len(ids) > STRIP // 2 else LARGE_CELL
        png = panels([Panel(title, items["image"], grey_levels(evaluation), cell=cell)], STRIP)
        caption = "Training images whose influence should be removed."
        return [Picture(name="forget", title="What was forgotten", caption=caption, png=png)]

    def _grids(
        self, evaluation: Evaluation[Samples], net: Features | None, forgotten: list[str], given: str
    ) -> Picture:
        levels = grey_levels(evaluation)
        content, n = [], self.side**2
        for subject in evaluation.models:
            images = samples(evaluation, subject, given, n, self.batch_size)
            marked = _marked(net, forgotten, images)
            title = subject if marked is None else f"{subject}: {int(marked.sum())} of {n} framed"
            content.append(Panel(title, images, levels, marked))
        frames = f" Framed: what the classifier takes for {_listed(forgotten)}." if forgotten else ""
        asked = f", with the conditions of {given} items" if given else ""
        return Picture(
            name=f"samples_{given}" if given else "samples",
            title=f"Samples from the same noise{asked}",
            caption=f"The same place in each grid is the same noise{' and condition' if given else ''}.{frames}",
            png=panels(content, self.side),
        )

    def _became(self, evaluation: Evaluation[Samples], net: Features, forgotten: list[str]) -> list[Picture]:
        marked = _marked(net, forgotten, samples(evaluation, "target", "", self.search, self.batch_size))
        chosen = torch.nonzero(marked).flatten()[:STRIP] if marked is not None else torch.empty(0)
        if len(chosen) == 0:
            return []
        levels, names = grey_levels(evaluation), _listed(forgotten)
        content = []
        for subject in evaluation.models:
            images = samples(evaluation, subject, "", self.search, self.batch_size)[chosen]
            content.append(Panel(subject, images, levels, _marked(net, forgotten, images)))
        caption = (
            f"Noise from which the target draws {names}, and what the other models draw from it. "
            "A frame marks what the classifier still takes for it."
        )
        png = panels(content, STRIP, stacked=True)
        return [Picture(name="became", title=f"What became of {names}", caption=caption, png=png)]


def _marked(net: Features | None, forgotten: list[str], images: Tensor) -> Tensor | None:
    """Return (n,) bool: the images classified as a forgotten category; None where there is none."""
    if net is None or not forgotten:
        return None
    classes = torch.tensor([net.labels.index(name) for name in forgotten])
    return torch.isin(net.classify(images), classes).any(dim=1)


def _listed(names: list[str]) -> str:
    return " or ".join(f"“{name}”" for name in names)
