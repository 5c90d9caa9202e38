"""Share of each category in the samples, by a classifier trained on real images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.records import Picture
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.splits import forgotten_names
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.figures import share_bars
from unlearn.evaluators.image.concept_classifier import CLASSIFIER_ACCURACY, classifier_accuracy
from unlearn.evaluators.sampling import sampled_clusters, sampled_splits, samples
from unlearn.evaluators.statistics import share_ci95
from unlearn.models.capabilities import Samples
from unlearn.models.feature_extractors.classifiers import TRAIN_ONE, Features, features_for

SHARE = Metric(
    name="sample_share",
    label="sample share",
    formula="share of samples that the classifier puts in `category`; without a category: in any forgotten one. "
    "Wilson interval. For conditional models `split` says whose conditions the samples have: forget shows what "
    "became of the forgotten",
    unit="share",
    direction={"forget": "lower", "retain": "retrained"},
    otherwise="`none` on forget for categories that are not forgotten",
    source="Malnick et al. 2024, section 4.3; Wilson 1927",
)


@dataclass(frozen=True, kw_only=True)
class SampleShare(Evaluator[Samples]):
    """Share of samples classified as each category, from the same noise for every subject.

    A category counts as forgotten where three quarters or more of its training items are forget items. ``split`` is
    forget for these categories and retain for the others. For conditional models it is the split of the items that the
    samples are conditioned on, so that forget shows what became of the forgotten.

    Args:
        samples: samples per subject; for conditional models, per subject and split.
        features: packaged feature net, or the folder of one; by default the packaged one that fits the data.
        batch_size: samples drawn at once; does not change the result.
    """

    samples: PositiveInt = 2000
    features: str | None = None
    batch_size: PositiveInt = 256

    metrics: ClassVar = (SHARE, CLASSIFIER_ACCURACY)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        self._net(splits)

    def _net(self, splits: Mapping[str, Split]) -> Features:
        """Return the net. Raises RecipeError where none fits the data; needs no model."""
        dataset = splits["forget"].dataset
        net = features_for(dataset.info, self.features)
        if unknown := sorted(set(dataset.labels) - {""} - set(net.labels)):
            raise RecipeError(
                f"The feature net {net.name} knows the labels {', '.join(net.labels)}; the data also has "
                f"{', '.join(unknown[:5])}. {TRAIN_ONE}"
            )
        return net

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        net = self._net(evaluation.splits).to(evaluation.device)
        forgotten = [name for name in forgotten_names(evaluation.splits["forget"]) if name in net.labels]
        findings = EvaluationResult()
        for given in sampled_splits(evaluation):
            shares = {}
            for subject in evaluation.models:
                drawn = samples(evaluation, subject, given, self.samples, self.batch_size)
                answers = net.classify(drawn)
                hits = {label: (answers == number).any(dim=1) for number, label in enumerate(net.labels)}
                clusters = sampled_clusters(evaluation, given, self.samples) if given else None
                shares[subject] = [share_ci95(of_label, clusters) for of_label in hits.values()]
                if len(forgotten) > 1 and not given:
                    any_of = torch.stack([hits[name] for name in forgotten]).any(dim=0)
                    findings.records.append(evaluation.record(SHARE, subject, "forget", any_of, detector=net.detector))
                for name in (*forgotten, *(label for label in net.labels if label not in forgotten)):
                    split = given or ("forget" if name in forgotten else "retain")
                    findings.records.append(
                        evaluation.record(
                            SHARE,
                            subject,
                            split,
                            hits[name],
                            clusters=clusters,
                            about={"category": name},
                            direction="none" if split == "forget" and name not in forgotten else None,
                            detector=net.detector,
                        )
                    )
            png = share_bars(shares, net.labels, forgotten)
            findings.pictures.append(self._picture(given, bool(forgotten), png))
        findings.records.extend(classifier_accuracy(evaluation, net))
        return findings

    def _picture(self, given: str, shaded: bool, png: bytes) -> Picture:
        what = f"samples of each model, with the conditions of {given} items," if given else "samples of each model"
        note = "the shaded category is to be forgotten" if shaded else "no category is forgotten as a whole"
        return Picture(
            name=f"shares_{given}" if given else "shares",
            title=f"What the models draw for {given} conditions" if given else "What the models draw",
            caption=(
                f"Share of each category in {self.samples} {what} from the same noise, with 95 % intervals; {note}."
            ),
            png=png,
        )
