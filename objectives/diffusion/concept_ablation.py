"""Concept ablation: the concept's prompt draws what the anchor's prompt draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unlearn.core.validation import at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import StateSource, check_anchors
from unlearn.objectives.diffusion.score_targets import affine_target, mean_square


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(Objective[Denoises]):
    """On images of the anchor, pull the score at the concept to the score at the anchor, or to the true noise.

    Model-based || eps(x_t, c_f) - sg[eps(x_t, c_a)] ||^2, noise-based || eps(x_t, c_f) - eps ||^2. The images are drawn
    once by the target from the forget prompts with the anchor's words in place of the concept's, and noised again.

    The value is the mean over the values of an item; the paper's w_t is 1. The released code stops the gradient at the
    key and value of the first token of a prompt; here no token is special.

    Args:
        variant: ``model`` or ``noise``.
        scores: whose score at the anchor is the aim of ``model``: the ``student``'s own as it moves, as in the paper,
            or the ``target``'s, which cannot drift.
        prior: lambda of || eps(x_t, c_a) - eps ||^2, which keeps the anchor, >= 0. Optional in the released code, and
            there 1.
        items: forget items from whose prompts images are drawn, >= 1.
        steps: DDIM steps of an image, from 2 to the model's timesteps.
        guidance: of the images.

    Reference:
        Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, 2023, section 3.2. arXiv:2303.13516
    """

    variant: Literal["model", "noise"] = "model"
    scores: Literal["student", "target"] = "student"
    prior: float = 0.0
    items: int = 64
    steps: int = 20
    guidance: float = 3.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        at_least(self, prior=0)
        if self.variant == "noise" and self.scores == "target":
            raise ValueError("scores is target, but variant is noise, which asks for no score. Take variant=model")
        _ = self.source

    @property
    def source(self) -> StateSource:
        """Where states come from."""
        return StateSource(
            source="generated", of_anchor=True, items=self.items, steps=self.steps, guidance=self.guidance
        )

    def prepare(self, model: Any, context: Context) -> None:
        """Draw the anchor's images."""
        check_anchors(context, "concept_ablation")
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the mean squared distance from the aim, and ``prior`` times that of the anchor's score, (B,)."""
        found = self.source(model, batch, context)
        assert found.anchor is not None and found.noise is not None
        wanted = found.noise
        if self.variant == "model":
            whose = context.reference() if self.scores == "target" else model
            wanted = affine_target(whose, found.x, found.t, [(1.0, found.anchor)])
        values = mean_square(model.predict(found.x, found.t, found.condition) - wanted)
        if self.prior:
            values = values + self.prior * mean_square(model.predict(found.x, found.t, found.anchor) - found.noise)
        return Values(values)
