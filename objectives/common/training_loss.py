"""The model's own training loss, as a retain term or as a baseline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn.data.base import Batch, Split, check_content
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class TrainingLoss(Objective):
    """Go on training: the wrapper's loss an item, in the unit that the wrapper states.

    On retain data it keeps what should stay; alone, it is plain fine-tuning.
    """

    needs: ClassVar[tuple[str, ...]] = ("training_loss",)

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse items that nothing can be trained on."""
        check_content(splits[split], f"{split}=training_loss", f"Type {split}=null, or data with images.")

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the training loss an item, (B,)."""
        loss = model.training_loss(batch, context.randomness)
        return Values(loss, {"training_loss": loss.detach()})
