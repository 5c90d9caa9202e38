"""Safe self-distillation: the score at the concept becomes the score at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import StateSource
from unlearn.objectives.diffusion.score_targets import affine_target, mean_square


@dataclass(frozen=True, kw_only=True)
class SDD(Objective[Denoises]):
    """Pull the model's score at the concept to its own score at the empty prompt, which does not move with it.

    || eps(x_t, c_f) - sg[eps(x_t, c_n)] ||^2, with x_t on trajectories of the average of the model's weights.

    The average is the result (``optim.ema``, 0.999 in the paper). The value is the mean over the values of an item.
    The released code tells the trajectories all concepts' words joined into one prompt, and trains at one concept
    after the other; here every item is told its own prompt in both places. With one concept the two are the same.

    Args:
        states: ``average``, ``student`` (the model as it is) or ``trajectory`` (the target's, drawn once: fast, but no
            state ever shows what the concept has become).
        items: forget items whose prompts are walked, >= 1.
        steps: DDIM steps of a trajectory, from 2 to the model's timesteps.
        guidance: of the trajectories.
        walks: trajectories walked a step, >= 1; more cost more, and make the states of a batch less alike.
        spread: draw t anywhere within the DDIM step of a state, as the released code does, not at the state's own time.

    Reference:
        Kim et al., Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models, 2023.
        arXiv:2307.05977
    """

    states: Literal["average", "student", "trajectory"] = "average"
    items: int = 64
    steps: int = 20
    guidance: float = 3.0
    walks: int = 4
    spread: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
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
        """Compute the target's trajectories, where they are asked for."""
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the mean squared distance from the score at the empty prompt, (B,)."""
        found = self.source(model, batch, context)
        wanted = affine_target(model, found.x, found.t, [(1.0, model.null(len(batch["id"])))])
        return Values(mean_square(model.predict(found.x, found.t, found.condition) - wanted))
