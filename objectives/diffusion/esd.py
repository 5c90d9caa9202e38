"""ESD: the score at the concept is turned away from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unlearn.core.validation import at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import StateSource
from unlearn.objectives.diffusion.score_targets import affine_target, mean_square


@dataclass(frozen=True, kw_only=True)
class ESD(Objective[Denoises]):
    """Erased Stable Diffusion: the model's score at the concept becomes the target's negatively guided one.

    || eps(x_t, c_f) - [ eps_0(x_t, c_n) - eta (eps_0(x_t, c_f) - eps_0(x_t, c_n)) ] ||^2

    The scope makes the variant: ESD-x is ``scope.kinds=[cross_attention]``, ESD-x-strict
    ``scope.kinds=[cross_attention_kv]``, ESD-u ``scope.kinds=[not_cross_attention]``. The value is the mean over
    the values of an item, not their sum. Every item is told its own prompt; several concepts are never joined into one.

    Args:
        eta: how far beyond the empty prompt the score is pushed, >= 0. This is the paper's; the authors' diffusers code
            takes eta + 1 where nothing else is erased from, for its target is c_f - g (c_f - c_n) in scores.
        erase_from: a prompt (or class) from which the concept is erased as an attribute: the score at this prompt
            becomes eps_0(x_t, c_from) - eta (eps_0(x_t, c_f) - eps_0(x_t, c_n)). States lie where the concept is drawn;
            the authors' diffusers code draws them at this prompt.
        states: ``trajectory`` are of the target, drawn once, as in the authors' diffusers code; ``student`` follows the
            model as it moves, as in the paper and the authors' first code.
        items: forget items along whose trajectories the states lie, >= 1.
        steps: DDIM steps of a trajectory, from 2 to the model's timesteps.
        guidance: of the trajectories.
        walks: trajectories walked a step (``student``), >= 1; more cost more, and make a batch's states less alike.
        spread: draw t anywhere within the DDIM step of a state, as the first code does, not at the state's own time.

    Reference:
        Gandikota et al., Erasing Concepts from Diffusion Models, 2023. arXiv:2303.07345
    """

    eta: float = 1.0
    erase_from: str | None = None
    states: Literal["trajectory", "student"] = "trajectory"
    items: int = 64
    steps: int = 20
    guidance: float = 3.0
    walks: int = 4
    spread: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        at_least(self, eta=0)
        _ = self.source

    @property
    def source(self) -> StateSource:
        """Where states come from."""
        return StateSource(
            source=self.states,
            items=self.items,
            steps=self.steps,
            guidance=self.guidance,
            walks=self.walks,
            spread=self.spread,
        )

    def prepare(self, model: Any, context: Context) -> None:
        """Compute the target's trajectories."""
        if self.erase_from is not None:
            model.prompts([self.erase_from])  # refuses a class that the model does not know
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the mean squared distance from the target, (B,)."""
        found = self.source(model, batch, context)
        n = len(batch["id"])
        told, null = found.condition, model.null(n)
        parts = [(1 + self.eta, null), (-self.eta, told)]
        if self.erase_from is not None:
            told = model.prompts([self.erase_from]).repeat(n)
            parts = [(1.0, told), (-self.eta, found.condition), (self.eta, null)]
        wanted = affine_target(context.reference(), found.x, found.t, parts)
        return Values(mean_square(model.predict(found.x, found.t, told) - wanted))
