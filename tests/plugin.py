"""Components of a user's own, found by their dotted path."""

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn.data.base import Batch
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class NeedsText(Objective):
    """Asks for a capability that no flow has."""

    needs: ClassVar[tuple[str, ...]] = ("text",)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        return Values(model.training_loss(batch, context.randomness))
