"""Concept ablation: the concept's prompt draws what the anchor's prompt draws."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from unlearn.core.validation import NonNegativeFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Values
from unlearn.objectives.diffusion.noisy_states import AnchorStates, NoisyStateObjective, Source


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(NoisyStateObjective[Denoises]):
    """On images of the anchor, pull the score at the concept to the score at the anchor, or to the true noise.

    Model-based || eps(x_t, c_f) - sg[eps(x_t, c_a)] ||^2, noise-based || eps(x_t, c_f) - eps ||^2. The images are drawn
    once by the target from the forget prompts with the anchor's words in place of the concept's, and noised again.

    The value is the mean over the values of an item; the paper's w_t is 1. The released code stops the gradient at the
    key and value of the first token of a prompt; here no token is special.

    Args:
        variant: ``model`` or ``noise``.
        scores: whose score at the anchor is the target of ``model``: the trained ``student``'s own, as in the paper, or
            that of the frozen ``target``, which cannot drift.
        prior: lambda of || eps(x_t, c_a) - eps ||^2, which keeps the anchor, >= 0. Optional in the released code, whose
            1 is 1 / channels here: it sums the first square over channels, and averages this one.
        states: ``generated`` images of the anchor.

    Reference:
        Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, 2023, section 3.2. arXiv:2303.13516
    """

    variant: Literal["model", "noise"] = "model"
    scores: Literal["student", "target"] = "student"
    prior: NonNegativeFloat = 0.0
    states: AnchorStates = field(default_factory=AnchorStates)
    sources: ClassVar[tuple[Source, ...]] = ("generated",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "noise" and self.scores == "target":
            raise ValueError("scores is target, but variant is noise, which asks for no score. Take variant=model")

    def __call__(self, model: Denoises, batch: Batch, context: Context[Denoises]) -> Values:
        """Return the mean squared distance from the target, and ``prior`` times that of the anchor's score, (B,)."""
        found = self.states(model, batch, context)
        assert found.anchor is not None and found.noise is not None  # ``prepare`` has refused items without an anchor
        wanted = found.noise
        if self.variant == "model":
            whose = context.reference() if self.scores == "target" else model
            wanted = found.target(whose, (1.0, found.anchor))
        values = found.distance(model, wanted)
        if self.prior:
            values = values + self.prior * found.distance(model, found.noise, found.anchor)
        return Values(values)
