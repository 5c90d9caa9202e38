"""Random labels for a denoiser: the score at the forgotten class becomes the score at another one."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from typing_extensions import override

from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition
from unlearn.objectives.base import Context, Values
from unlearn.objectives.diffusion.noisy_states import NoisyStateObjective, Source, States, StateSource, check_anchors


@dataclass(frozen=True, kw_only=True)
class RandomLabel(NoisyStateObjective[Denoises]):
    """On noised forget images, pull the score at their own condition to the model's own score at another one.

    || eps(x_t, c_f) - sg[eps(x_t, c')] ||^2. With ``scope=saliency`` and ``training_loss`` on the retain items this is
    SalUn. The second score is that of the model as it is trained, not of the target.

    The value is the mean over the values of an item. The released code for CIFAR-10 takes the mean here and the sum
    over the 3 x 32 x 32 values in the retain term, so that its alpha = 0.001 is a ``retain.weight`` of 3.07.

    Args:
        instead: c' is the ``anchor`` of the item's concept, or the condition of a retain item drawn at each step
            (``random``). The released code takes the next class.
        states: ``data``, the forget images; ``generated``, images of them that the target draws, for data without any.

    Reference:
        Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification
        and Generation, 2024, the objective for image generation. arXiv:2310.12508
    """

    instead: Literal["anchor", "random"] = "anchor"
    states: StateSource = field(default_factory=lambda: StateSource(source="data"))
    sources: ClassVar[tuple[Source, ...]] = ("data", "generated")

    @override
    def prepare(self, model: Denoises, context: Context[Denoises]) -> None:
        if self.instead == "anchor":
            check_anchors(context)
        super().prepare(model, context)

    def __call__(self, model: Denoises, batch: Batch, context: Context[Denoises]) -> Values:
        """Return the mean squared distance from the score at the other condition, (B,)."""
        found = self.states(model, batch, context)
        wanted = found.target(model, (1.0, self._other(model, batch, found, context)))
        return Values(found.distance(model, wanted))

    def _other(self, model: Denoises, batch: Batch, found: States, context: Context[Denoises]) -> Condition:
        if found.anchor is not None and self.instead == "anchor":
            return found.anchor
        ids = context.splits["retain"].ids.to(batch["id"].device)
        drawn = ids[context.randomness.child("label").integers(batch["id"], len(ids))]
        return model.condition(context.batch("retain", drawn))
