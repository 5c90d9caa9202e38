"""How often each category is drawn, by a classifier trained on real images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearn.data.base import Dataset, Split
from unlearn.errors import RecipeError
from unlearn.evaluators.base import Evaluation, Evaluator, Findings, Picture, share_ci95
from unlearn.evaluators.features import TRAIN_ONE, Features, features_for
from unlearn.evaluators.pictures import share_bars
from unlearn.evaluators.shared import forgotten_names, samples
from unlearn.metrics import Record
from unlearn.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class SampleShare(Evaluator):
    """Share of samples that a classifier puts in each category, from the same noise for every subject.

    A category counts as forgotten (split forget) where three quarters or more of its training items are forget items.

    Args:
        samples: samples a subject.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data.
        batch_size: samples drawn at once; does not change the result.
    """

    samples: int = 2000
    features: str | None = None
    batch_size: int = 256

    needs: ClassVar[tuple[str, ...]] = ("samples",)

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        at_least(self, samples=1, batch_size=1)

    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse data that no feature net fits."""
        self._net(splits)

    def _net(self, splits: Mapping[str, Split]) -> Features:
        """Return the net, or raise RecipeError where none fits the data; needs no model."""
        dataset = splits["forget"].dataset
        net = features_for(dataset.info, self.features)
        if unknown := sorted(set(dataset.labels) - {""} - set(net.labels)):
            raise RecipeError(
                f"The feature net {net.name} knows the labels {', '.join(net.labels)}; the data also has "
                f"{', '.join(unknown[:5])}. {TRAIN_ONE}"
            )
        return net

    def __call__(self, evaluation: Evaluation) -> Findings:
        """Return ``sample_share`` for every subject and category, the classifier's accuracy, and a bar chart."""
        net = self._net(evaluation.splits).to(evaluation.device)
        dataset = evaluation.splits["forget"].dataset
        forgotten = [name for name in forgotten_names(evaluation.splits["forget"]) if name in net.labels]
        records, shares = [], {}
        for subject in evaluation.models:
            drawn = samples(evaluation, subject, self.samples, self.batch_size)
            counts = torch.bincount(net.classify(drawn), minlength=len(net.labels)).tolist()
            found = dict(zip(net.labels, counts, strict=True))
            shares[subject] = [share_ci95(count, self.samples) for count in counts]
            if len(forgotten) > 1:
                total = sum(found[name] for name in forgotten)
                records.append(self._record(evaluation, subject, "forget", {}, total))
            for name in (*forgotten, *(label for label in net.labels if label not in forgotten)):
                split = "forget" if name in forgotten else "retain"
                records.append(self._record(evaluation, subject, split, {"category": name}, found[name]))
        records.append(_accuracy(evaluation, net, dataset))
        picture = Picture(
            name="shares",
            title="What the models draw",
            caption=(
                f"Share of each category in {self.samples} samples of each model from the same noise, with 95 % "
                "intervals; the shaded category is to be forgotten."
                if forgotten
                else f"Share of each category in {self.samples} samples of each model from the same noise, with 95 % "
                "intervals; no category is forgotten as a whole."
            ),
            png=share_bars(shares, net.labels, forgotten),
        )
        return Findings(records, [picture])

    def _record(self, evaluation: Evaluation, subject: str, split: str, about: dict[str, str], count: int) -> Record:
        share, ci95 = share_ci95(count, self.samples)
        return Record(
            evaluator="sample_share",
            metric="sample_share",
            subject=subject,
            split=split,
            about=about,
            value=share,
            ci95=ci95,
            n=self.samples,
            seed=evaluation.seed,
            direction="lower" if split == "forget" else "retrained",
            unit="share",
        )


def _accuracy(evaluation: Evaluation, net: Features, dataset: Dataset) -> Record:
    """Measure the classifier on the test items of the data at hand."""
    ids = torch.nonzero(dataset.is_test & (net.known(dataset) >= 0)).flatten()
    right: Tensor = net.classify(dataset.batch(ids)["image"]) == net.known(dataset)[ids]
    share, ci95 = share_ci95(int(right.sum()), len(ids))
    return Record(
        evaluator="sample_share",
        metric="classifier_accuracy",
        subject="target",
        split="test",
        about={"features": net.name},
        value=share,
        ci95=ci95,
        n=len(ids),
        seed=evaluation.seed,
        direction="higher",
        unit="share",
    )
