"""The model's own training loss, as a retain term or as a baseline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn.data.base import Batch, Split, check_content
from unlearn.errors import RecipeError
from unlearn.models.base import TrainsAgainst
from unlearn.objectives.base import Companion, Context, Objective, Values, frozen
from unlearn.randomness import Randomness
from unlearn.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class TrainingLoss(Objective):
    """Go on training: the wrapper's loss an item, in the unit that the wrapper states.

    On retain data it keeps what should stay; alone, it is plain fine-tuning. A model that is trained against another
    network (a GAN) gets one, which takes a step on its own loss before each step of the model.

    Args:
        warmup: of a model that is trained against another network: steps that the other takes alone before the first
            of the model, >= 0, as it knows nothing at first; other models have no such steps.
    """

    warmup: int = 0

    needs: ClassVar[tuple[str, ...]] = ("training_loss",)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        at_least(self, warmup=0)

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse items that nothing can be trained on."""
        check_content(splits[split], f"{split}=training_loss", f"Type {split}=null, or data with images.")

    def companion(self, model: Any, teacher: Callable[[], Any], split: str, randomness: Randomness) -> Companion | None:
        """Return the network that the model is trained against, if it is."""
        if not isinstance(model, TrainsAgainst):
            if self.warmup:
                raise RecipeError(
                    f"{split}=training_loss: a {type(model).__name__} is trained against no other network, which could "
                    "warm up. Type warmup=0."
                )
            return None
        return Companion(
            name="adversary",
            build=lambda: model.adversary(randomness),
            groups={split: {"adversary": AdversaryLoss()}},
            optim=lambda optim: optim,
            warmup=self.warmup,
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
