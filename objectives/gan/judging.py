"""Whether an image shows what is to be forgotten: a classifier says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearn.data.base import Split
from unlearn.errors import RecipeError, did_you_mean
from unlearn.models.embedders import scripted
from unlearn.objectives.base import Context


@dataclass(frozen=True)
class Judge:
    """A classifier, and which of its classes are meant.

    Args:
        classifier: a packaged feature net, the folder of one, or a TorchScript file (``.pt``) that maps images
            (B, C, H, W) in [-1, 1] to logits (B, K), or (B,) of one class; None takes the packaged net that fits.
        labels: classes that are meant, by name, or by number for a TorchScript file; none: those that are forgotten as
            a whole (class 1, or the only one, for a TorchScript file).
    """

    classifier: str | None = None
    labels: list[str] = field(default_factory=list)

    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse a classifier that is not there or that knows none of what is meant, with a RecipeError."""
        if self._scripted:
            scripted(str(self.classifier), "classifier")
            if not all(label.isdigit() for label in self.labels):
                raise RecipeError(f"The classes of {self.classifier} have numbers; {self.labels} are none.")
            return
        self._known(splits)

    def probability(self, model: Any, images: Tensor, context: Context) -> Tensor:
        """Return the probability that an image shows what is meant, (B,), of images (B, C, H, W) in [-1, 1]."""
        net = self._net(context)
        with torch.no_grad():
            if self._scripted:
                logits: Tensor = net(images.float()).double()
                if logits.dim() == 1 or logits.shape[1] == 1:
                    return logits.flatten().sigmoid()
                chosen = [int(label) for label in self.labels] or [1]
                if max(chosen) >= logits.shape[1]:
                    raise RecipeError(f"{self.classifier} has {logits.shape[1]} classes; there is none {max(chosen)}.")
                found: Tensor = logits.softmax(dim=1)[:, chosen].sum(dim=1)
                return found
            chosen = [net.labels.index(label) for label in self._known(context.splits)]
            likely: Tensor = net.to(images.device).probabilities(model.images(images))[:, chosen].double()
            return likely.sum(dim=1).clamp(max=1)

    @property
    def _scripted(self) -> bool:
        return self.classifier is not None and self.classifier.endswith(".pt")

    def _known(self, splits: Mapping[str, Split]) -> list[str]:
        """Return the names of the classes that are meant, which the net knows."""
        from unlearn.evaluators.features import features_for
        from unlearn.evaluators.shared import forgotten_names

        net = features_for(splits["forget"].dataset.info, self.classifier)
        wanted = self.labels or [name for name in forgotten_names(splits["forget"]) if name in net.labels]
        for name in wanted:
            if name not in net.labels:
                raise RecipeError(f"The classifier {net.name} knows no {name!r}. {did_you_mean(name, net.labels)}")
        if not wanted:
            raise RecipeError(
                f"Nothing that the classifier {net.name} knows is forgotten as a whole; it knows "
                f"{', '.join(net.labels)}. Type label=[NAME], or another classifier."
            )
        return wanted

    def _net(self, context: Context) -> Any:
        from unlearn.evaluators.features import features_for

        def read() -> Any:
            if not self._scripted:
                net = features_for(context.splits["forget"].dataset.info, self.classifier)
                net.network.float()  # also where the run is in double precision
                return net
            return scripted(str(self.classifier), "classifier")[1].to(context.device)

        return read() if context.remembered is None else context.remembered.once(f"judge {self.classifier}", read)
