"""The target's scores on what must stay."""

from dataclasses import dataclass, field
from typing import ClassVar

from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Values
from unlearn.objectives.diffusion.noisy_states import NoisyStateObjective, Source, StateSource


@dataclass(frozen=True, kw_only=True)
class ScorePreservation(NoisyStateObjective[Denoises]):
    """Keep the score on retain items: || eps(x_t, c_r) - eps_0(x_t, c_r) ||^2, the mean over the values of an item.

    At the target itself the gradient is 0.

    Args:
        states: ``data`` asks for images; ``trajectory`` and ``generated``, both of the target and computed once, do
            not.

    Reference:
        the term that keeps the utility in Zhang et al., Defensive Unlearning with Adversarial Training for Robust
        Concept Erasure in Diffusion Models, 2024. arXiv:2405.15234
    """

    states: StateSource = field(default_factory=lambda: StateSource(source="data"))
    sources: ClassVar[tuple[Source, ...]] = ("data", "generated", "trajectory")

    def __call__(self, model: Denoises, batch: Batch, context: Context[Denoises]) -> Values:
        """Return the mean squared distance from the target's score, (B,)."""
        found = self.states(model, batch, context)
        return Values(found.distance(model, found.target(context.reference(), (1.0, found.condition))))
