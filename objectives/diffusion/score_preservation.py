"""The target's scores on what must stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import StateSource
from unlearn.objectives.diffusion.score_targets import affine_target, mean_square


@dataclass(frozen=True, kw_only=True)
class ScorePreservation(Objective[Denoises]):
    """Keep the score on retain items: || eps(x_t, c_r) - eps_0(x_t, c_r) ||^2, the mean over the values of an item.

    At the target itself the gradient is 0.

    Args:
        states: where x_t comes from: ``data`` asks for images, ``trajectory`` and ``generated``, both of the target and
            drawn once, ask for none.
        items: retain items that have a trajectory or are generated, >= 1.
        steps: DDIM steps of those, from 2 to the model's timesteps.
        guidance: of those.

    Reference:
        the term that keeps the utility in Zhang et al., Defensive Unlearning with Adversarial Training for Robust
        Concept Erasure in Diffusion Models, 2024. arXiv:2405.15234
    """

    states: Literal["data", "generated", "trajectory"] = "data"
    items: int = 64
    steps: int = 20
    guidance: float = 3.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        _ = self.source

    @property
    def source(self) -> StateSource:
        """Where states come from."""
        return StateSource(source=self.states, items=self.items, steps=self.steps, guidance=self.guidance)

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse items without images, where states are made of images."""
        self.source.check(splits, split, "score_preservation")

    def prepare(self, model: Any, context: Context) -> None:
        """Compute the target's trajectories or items, where they are asked for."""
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the mean squared distance from the target's score, (B,)."""
        found = self.source(model, batch, context)
        wanted = affine_target(context.reference(), found.x, found.t, [(1.0, found.condition)])
        return Values(mean_square(model.predict(found.x, found.t, found.condition) - wanted))
