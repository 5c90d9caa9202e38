"""ESD: the score at the concept is turned away from it."""

from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import override

from unlearn.core.validation import NonNegativeFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Values
from unlearn.objectives.diffusion.noisy_states import NoisyStateObjective, Source, StateSource


@dataclass(frozen=True, kw_only=True)
class ESD(NoisyStateObjective[Denoises]):
    """Erased Stable Diffusion: the model's score at the concept becomes the target's negatively guided one.

    || eps(x_t, c_f) - [ eps_0(x_t, c_n) - eta (eps_0(x_t, c_f) - eps_0(x_t, c_n)) ] ||^2

    The scope makes the variant: ESD-x is ``scope.kinds=[cross_attention]``, ESD-x-strict
    ``scope.kinds=[cross_attention_kv]``, ESD-u ``scope.kinds=[not_cross_attention]``. The value is the mean over
    the values of an item, not their sum. Every item has its own prompt; several concepts are never joined into one.

    Args:
        eta: how far beyond the empty prompt the score is pushed, >= 0. This is the paper's; the authors' diffusers code
            takes eta + 1 where nothing else is erased from, for its target is c_f - g (c_f - c_n) in scores.
        erase_from: a prompt (or class) from which the concept is erased as an attribute: the score at this prompt
            becomes eps_0(x_t, c_from) - eta (eps_0(x_t, c_f) - eps_0(x_t, c_n)). States lie where the concept is drawn;
            the authors' diffusers code draws them at this prompt.
        states: ``trajectory`` of the target, computed once, as in the authors' diffusers code; ``student`` follows the
            model as it is trained, as in the paper and the authors' first code.

    Reference:
        Gandikota et al., Erasing Concepts from Diffusion Models, 2023. arXiv:2303.07345
    """

    eta: NonNegativeFloat = 1.0
    erase_from: str | None = None
    states: StateSource = field(default_factory=lambda: StateSource(source="trajectory"))
    sources: ClassVar[tuple[Source, ...]] = ("trajectory", "student")

    @override
    def prepare(self, model: Denoises, context: Context[Denoises]) -> None:
        if self.erase_from is not None:
            model.prompts([self.erase_from], whole=True)  # refuses a class that the model does not know
        super().prepare(model, context)

    def __call__(self, model: Denoises, batch: Batch, context: Context[Denoises]) -> Values:
        """Return the mean squared distance from the target, (B,)."""
        found = self.states(model, batch, context)
        n = len(batch["id"])
        condition, null = found.condition, model.null(n)
        parts = [(1 + self.eta, null), (-self.eta, condition)]
        if self.erase_from is not None:
            condition = model.prompts([self.erase_from]).repeat(n)
            parts = [(1.0, condition), (-self.eta, found.condition), (self.eta, null)]
        return Values(found.distance(model, found.target(context.reference(), *parts), condition))
