"""Accuracy of samples: do they show the forgotten concept, the kept ones, and the other attributes?"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.records import Record
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.image.concept_classifier import (
    CLASSIFIER_ACCURACY,
    ConceptClassifier,
    classifier_accuracy,
    concept_classifier,
)
from unlearn.evaluators.sampling import sampled_clusters, sampled_items, samples
from unlearn.evaluators.statistics import Interval, ratio_of_shares, share_ci95
from unlearn.models.capabilities import Samples

ACCURACY = Metric(
    name="accuracy",
    label="accuracy on samples",
    formula="share of samples in which the classifier sees what the model was conditioned on. forget: the forgotten "
    "label in samples of forget items; retain: the right answer to the same question in samples of retain items; "
    "cross_domain: the right answer to all other questions in samples of forget items (`score: on_retain`: of retain "
    "items). Wilson interval. `score: of_target`: divided by the target's, with an interval for a ratio",
    unit="share",
    direction={"forget": "lower", "retain": "higher", "cross_domain": "higher"},
    source="Zhang et al. 2024 (UnlearnCanvas), section 4; Wilson 1927; Donner and Zou 2012",
)
UNLEARNING = Metric(
    name="unlearning_accuracy",
    label="unlearning accuracy",
    formula="1 - `accuracy` on forget, of the forget samples alone (UA); `score: of_target`: 1 - that share of the "
    "target's",
    unit="share",
    direction="higher",
    source="Zhang et al. 2024 (UnlearnCanvas), section 4",
)

OF_TARGET, ON_RETAIN = {"score": "of_target"}, {"score": "on_retain"}

Row = tuple[Metric, dict[str, str], Tensor | tuple[float, Interval]]
"""A metric, what else varies, and the hits (n,) or the figure itself."""

Hits = tuple[Tensor, list[str]]
"""Of n samples: (n,) bool, whether the classifier saw what they are conditioned on; and its label per sample."""


@dataclass(frozen=True, kw_only=True)
class ConceptAccuracy(Evaluator[Samples]):
    """Share of samples in which a classifier, trained on real images, sees what the model was conditioned on.

    ``split`` forget: the forgotten concept in samples conditioned on it; retain (in-domain): the right answer
    to the same question in samples of retain items; cross_domain: the right answer to all other questions in samples
    of forget items (``score: on_retain``: of retain items). Forgetting the threes of coloured digits, these are the
    threes among forget samples, the digits of retain samples, and the colours. Each share is over the samples of that
    split alone, so that errors elsewhere do not count.

    Args:
        samples: samples per subject, for forget conditions and again for retain conditions.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data.
        batch_size: samples drawn at once; does not change the result.

    Reference:
        Zhang et al., UnlearnCanvas, 2024, section 4 (UA, IRA and CRA). arXiv:2402.11846
    """

    samples: PositiveInt = 200
    features: str | None = None
    batch_size: PositiveInt = 256

    metrics: ClassVar = (ACCURACY, UNLEARNING, CLASSIFIER_ACCURACY)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        concept_classifier(splits, self.features)  # refuses data that no net fits

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        classifier = concept_classifier(evaluation.splits, self.features, evaluation.device)
        found = {subject: self._hits(evaluation, classifier, subject) for subject in evaluation.models}
        records = []
        for subject, figures in found.items():
            for (split, score), (hits, labels) in figures.items():
                add = partial(self._records, evaluation, classifier, subject, split)
                base = found["target"][split, score][0] if subject != "target" else None
                # samples of other questions are conditioned on items of forget, or of retain by their score
                given = "retain" if "retain" in (split, score.removeprefix("on_")) else "forget"
                clusters = sampled_clusters(evaluation, given, self.samples)
                records += add({"score": score} if score else {}, hits, base, clusters)
                for label in sorted(set(labels)) if not score and len(set(labels)) > 1 else ():
                    own = torch.tensor([name == label for name in labels])
                    records += add({"category": label}, hits[own], None, None if clusters is None else clusters[own])
        return EvaluationResult(records + classifier_accuracy(evaluation, classifier.net))

    def _hits(
        self, evaluation: Evaluation[Samples], classifier: ConceptClassifier, subject: str
    ) -> dict[tuple[str, str], Hits]:
        """Return the hits and labels of a subject's samples, by split and score."""
        right, items = {}, {}
        for split in ("forget", "retain"):
            items[split] = sampled_items(evaluation, split, self.samples)
            drawn = samples(evaluation, subject, split, self.samples, self.batch_size)
            right[split] = classifier.right(drawn, items[split])
        inside, outside = classifier.domain, ~classifier.domain
        seen = (right["forget"] & classifier.own[items["forget"]]).any(dim=1)
        found: dict[tuple[str, str], Hits] = {
            ("forget", ""): (seen, classifier.labels(items["forget"], inside)),
            ("retain", ""): (right["retain"][:, inside].all(dim=1), classifier.labels(items["retain"], inside)),
        }
        if outside.any():
            for split, score in (("forget", ""), ("retain", "on_retain")):
                hits = right[split][:, outside].all(dim=1)
                found["cross_domain", score] = (hits, classifier.labels(items[split], outside))
        return found

    def _records(
        self,
        evaluation: Evaluation[Samples],
        classifier: ConceptClassifier,
        subject: str,
        split: str,
        about: dict[str, str],
        hits: Tensor,
        base: Tensor | None = None,
        clusters: Tensor | None = None,
    ) -> list[Record]:
        """Return the accuracy of samples, its ratio to the target's if given, and on forget also 1 - each."""
        rows: list[Row] = [(ACCURACY, about, hits)]
        missed: list[Row] = [(UNLEARNING, about, ~hits)]
        if base is not None and not about:
            value, ci95 = ratio_of_shares(share_ci95(hits, clusters), share_ci95(base, clusters))
            rows.append((ACCURACY, OF_TARGET, (value, ci95)))
            # one minus the figure reverses its interval
            missed.append((UNLEARNING, OF_TARGET, (1 - value, ci95 and (1 - ci95[1], 1 - ci95[0]))))
        add = partial(evaluation.record, clusters=clusters, n=len(hits), detector=classifier.net.detector)
        return [
            add(metric, subject, split, figure, about=more)
            for metric, more, figure in rows + (missed if split == "forget" else [])
        ]
