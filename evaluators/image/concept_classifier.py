"""Does a sample show a concept? A feature net, the right answers for the data, and which of them are forgotten."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.records import Record
from unlearn.data.base import Split
from unlearn.data.splits import forgotten_names
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.evaluators.sampling import is_conditional
from unlearn.models.feature_extractors.classifiers import TRAIN_ONE, Features, features_for

CLASSIFIER_ACCURACY = Metric(
    name="classifier_accuracy",
    label="classifier accuracy",
    formula="share of the data's test images that the classifier names rightly; `score`: the question (a digit, a "
    "colour) of a net that answers several. Wilson interval. It bounds what figures by that classifier can resolve",
    unit="share",
    direction="higher",
)


@dataclass(frozen=True)
class ConceptClassifier:
    """Answers the questions of a feature net about samples that are conditioned on items of a dataset.

    Attributes:
        net: the feature net, with G questions.
        known: (N, G) int64, the right answers for the items, indices into the net's labels.
        own: (N, G) bool, which of these are forgotten.
        domain: (G,) bool, the questions with a forgotten answer.
    """

    net: Features
    known: Tensor
    own: Tensor
    domain: Tensor

    def right(self, images: Tensor, items: Tensor) -> Tensor:
        """Return (n, G) bool: which answers about images (n, C, H, W) uint8 are right for their items (n,)."""
        return self.net.classify(images) == self.known[items]

    def seen(self, images: Tensor, items: Tensor) -> Tensor:
        """Return (n,) bool: whether an image shows a forgotten answer of its item."""
        return (self.right(images, items) & self.own[items]).any(dim=1)

    @property
    def forgotten(self) -> list[str]:
        """The labels that are forgotten."""
        return [self.net.labels[answer] for answer in torch.unique(self.known[self.own]).tolist()]

    def labels(self, items: Tensor, questions: Tensor) -> list[str]:
        """Return the right answers of items to some questions, (G,) bool; several are joined by a space."""
        chosen = self.known[items][:, questions].tolist()
        return [" ".join(self.net.labels[answer] for answer in row) for row in chosen]


def concept_classifier(
    splits: Mapping[str, Split], features: str | None, device: torch.device | str = "cpu"
) -> ConceptClassifier:
    """Return the classifier for the data of conditional models.

    Args:
        splits: forget and retain.
        features: packaged feature net, or the folder of one; None takes the packaged one that fits the data.
        device: where the net computes.

    Raises:
        RecipeError: models are unconditional, no net fits, it does not know the data's labels, or none is forgotten.
    """
    forget = splits["forget"]
    if not is_conditional(forget):
        raise RecipeError(
            "This evaluator classifies samples of conditional models, and this model is unconditional. "
            "Take evaluate.sample_share instead."
        )
    dataset = forget.dataset
    net = features_for(dataset.info, features).to(device)
    known = net.known(dataset)
    for split in (forget, splits["retain"]):
        lost = split.ids[(known[split.ids] < 0).any(dim=1)]
        if len(lost):
            item = int(lost[0])
            shown = ", ".join(sorted({dataset.labels[item], *dataset.attributes[item]} - {""})) or "nothing"
            raise RecipeError(
                f"The feature net {net.name} knows the labels {', '.join(net.labels)}; item {item} of the data is "
                f"{shown}. {TRAIN_ONE}"
            )
    called = {concept.name for concept in getattr(dataset, "concepts", ())} or set(forgotten_names(forget))
    names = [net.labels.index(name) for name in sorted(called) if name in net.labels]
    if not names:
        raise RecipeError(
            f"Neither data.concepts nor data.forget names one of {', '.join(net.labels)}, so nothing says what samples "
            f"should not show. Type data.forget.label={net.labels[0]}, or drop the evaluators that classify samples."
        )
    own = torch.isin(known, torch.tensor(names))
    return ConceptClassifier(net, known, own, own[forget.ids].any(dim=0))


def classifier_accuracy(evaluation: Evaluation[Any], net: Features) -> list[Record]:
    """Measure a net on the test items of the data, one record per question; none where there are no images."""
    dataset = evaluation.splits["forget"].dataset
    known = net.known(dataset)
    ids = torch.nonzero(dataset.is_test & (known >= 0).all(dim=1)).flatten()
    if len(ids) == 0 or "image" not in (items := dataset.batch(ids)):
        return []
    right = net.classify(items["image"]) == known[ids]
    records = []
    for question, hits in zip(net.groups, right.unbind(dim=1), strict=True):
        about = {"features": net.name} | ({"score": question} if len(net.groups) > 1 else {})
        records.append(
            evaluation.record(CLASSIFIER_ACCURACY, "target", "test", hits, about=about, detector=net.detector)
        )
    return records
