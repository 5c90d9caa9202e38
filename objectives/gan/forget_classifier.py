"""A classifier of whether an image shows what is to be forgotten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.data.base import Split
from unlearn.data.identities import IdentityData
from unlearn.data.splits import forgotten_names
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.feature_extractors.embedders import Attributes, attribute_net
from unlearn.objectives.base import Context


@dataclass(frozen=True)
class ForgetClassifier:
    """A classifier, and which of its labels are to be forgotten.

    Args:
        classifier: by name or path (feature_extractors.embedders.attribute_net); None takes the packaged one that fits.
        labels: class names to forget (indices, as strings, for a TorchScript file). Default: the classes that the
            forget split covers completely; class 1, or the only one, of a TorchScript file. Identities have no labels
            that a classifier knows, so that they must be given.
    """

    classifier: str | None = None
    labels: list[str] = field(default_factory=list)

    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse a classifier that does not exist or that knows none of the labels, with a RecipeError."""
        if "shape" in (info := splits["forget"].dataset.info):
            self.forgotten(self.net(info["shape"], info), splits["forget"])

    def probability(self, model: ImageGenerator, images: Tensor, context: Context[ImageGenerator]) -> Tensor:
        """Return the probability that an image shows what is to be forgotten, (B,), of images (B, C, H, W) in [-1, 1].

        Images are rounded to grey levels first. The probabilities of several labels are added, up to 1.
        """
        forget = context.splits["forget"]
        net = self.net(images.shape[1:], forget.dataset.info)
        chosen = [net.labels.index(label) for label in self.forgotten(net, forget)]
        with torch.no_grad():  # as a viewer sees them: rounded to grey levels, then in [-1, 1] again
            shown = model.images(images).float() * (2 / (model.levels - 1)) - 1
            return net(shown)[:, chosen].double().sum(dim=1).clamp(max=1)

    def net(self, shape: Sequence[int], info: Mapping[str, Any]) -> Attributes:
        """Return the classifier of images (C, H, W) of data that ``info`` describes."""
        return attribute_net(self.classifier, tuple(shape), info.get("frame", 0))

    def forgotten(self, net: Attributes, forget: Split) -> list[str]:
        """Return the labels to forget, which the classifier knows; raises RecipeError where there are none."""
        for name in self.labels:
            if name not in net.labels:
                raise RecipeError(f"The classifier {net.name} knows no {name!r}. {did_you_mean(name, net.labels)}")
        if self.labels:
            return self.labels
        known = f"The classifier {net.name} knows {', '.join(net.labels)}."
        if isinstance(forget.dataset, IdentityData):
            raise RecipeError(
                f"label is empty, and identities have no labels that a classifier knows. {known} Type "
                f"label=[{net.labels[0]}]."
            )
        if net.numbered:
            return [net.labels[min(1, len(net.labels) - 1)]]
        wanted = [name for name in forgotten_names(forget) if name in net.labels]
        if not wanted:
            raise RecipeError(
                f"The forget split covers no class that the classifier {net.name} knows completely. {known} Type "
                "label=[NAME], or another classifier."
            )
        return wanted
