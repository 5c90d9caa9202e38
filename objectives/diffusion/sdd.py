"""Safe self-distillation: the score at the concept becomes the score at the empty prompt."""

from dataclasses import dataclass, field
from typing import ClassVar

from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Values
from unlearn.objectives.diffusion.noisy_states import NoisyStateObjective, Source, StateSource


@dataclass(frozen=True, kw_only=True)
class SDD(NoisyStateObjective[Denoises]):
    """Pull the model's score at the concept to its own score at the empty prompt, without gradient through the latter.

    || eps(x_t, c_f) - sg[eps(x_t, c_n)] ||^2, with x_t on trajectories of the average of the model's weights.

    The average is the result (``optim.ema``, 0.999 in the paper). The value is the mean over the values of an item.
    The released code conditions the trajectories on all concepts' words joined into one prompt, and trains on one
    concept after the other; here every item has its own prompt in both places. With one concept the two are the same.

    Args:
        states: ``average``, ``student`` (the model as it is) or ``trajectory`` (the target's, computed once: fast, but
            no state ever shows what the concept has become).

    Reference:
        Kim et al., Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models, 2023.
        arXiv:2307.05977
    """

    states: StateSource = field(default_factory=lambda: StateSource(source="average"))
    sources: ClassVar[tuple[Source, ...]] = ("average", "student", "trajectory")

    def __call__(self, model: Denoises, batch: Batch, context: Context[Denoises]) -> Values:
        """Return the mean squared distance from the score at the empty prompt, (B,)."""
        found = self.states(model, batch, context)
        return Values(found.distance(model, found.target(model, (1.0, model.null(len(batch["id"]))))))
