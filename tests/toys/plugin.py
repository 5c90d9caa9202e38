"""Components of a user's own, found by their dotted path."""

from dataclasses import dataclass
from typing import ClassVar

from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues, Trains
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class NeedsText(Objective[Continues]):
    """Asks for a capability that no flow has."""

    def __call__(self, model: Continues, batch: Batch, context: Context) -> Values:
        raise AssertionError("refused before any step")


@dataclass(frozen=True, kw_only=True)
class WholeBatch(Objective[Trains]):
    """A statistic of the whole batch, which has no value of one item alone."""

    over_batch: ClassVar[bool] = True

    def __call__(self, model: Trains, batch: Batch, context: Context) -> Values:
        return Values(model.training_loss(batch, context.randomness))
