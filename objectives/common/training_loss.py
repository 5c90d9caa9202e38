"""The model's own training loss, as a retain term or as a baseline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn.data.base import Batch, Split, check_content
from unlearn.models.base import TrainsAgainst
from unlearn.objectives.base import Companion, Context, Objective, Values, frozen
from unlearn.randomness import Randomness


@dataclass(frozen=True, kw_only=True)
class TrainingLoss(Objective):
    """Go on training: the wrapper's loss an item, in the unit that the wrapper states.

    On retain data it keeps what should stay; alone, it is plain fine-tuning. A model that is trained against another
    network (a GAN) gets one, which takes a step on its own loss before each step of the model.
    """

    needs: ClassVar[tuple[str, ...]] = ("training_loss",)

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse items that nothing can be trained on."""
        check_content(splits[split], f"{split}=training_loss", f"Type {split}=null, or data with images.")

    def companion(self, model: Any, teacher: Callable[[], Any], split: str, randomness: Randomness) -> Companion | None:
        """Return the network that the model is trained against, if it is."""
        if not isinstance(model, TrainsAgainst):
            return None
        return Companion(
            name="adversary",
            build=lambda: model.adversary(randomness),
            groups={split: {"adversary": AdversaryLoss()}},
            optim=lambda optim: optim,
        )

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the training loss an item, (B,)."""
        if isinstance(model, TrainsAgainst):
            with frozen(context.beside()):
                loss = model.adversarial_loss(context.beside(), batch, context.randomness)
        else:
            loss = model.training_loss(batch, context.randomness)
        return Values(loss, {"training_loss": loss.detach()})


@dataclass(frozen=True, kw_only=True)
class AdversaryLoss(Objective):
    """The own loss of the network that a model is trained against."""

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the loss an item, (B,)."""
        return Values(model.adversary_loss(context.beside(), batch, context.randomness))
