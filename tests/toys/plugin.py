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


@dataclass(frozen=True, kw_only=True)
class WholeBatch(NeedsText):
    """A statistic of the whole batch, which has no value of one item alone."""

    needs: ClassVar[tuple[str, ...]] = ()
    over_batch: ClassVar[bool] = True
