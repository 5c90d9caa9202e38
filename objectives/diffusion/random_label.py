"""Random labels for a denoiser: the score at the forgotten class becomes the score at another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import States, StateSource, check_anchors
from unlearn.objectives.diffusion.score_targets import affine_target, mean_square


@dataclass(frozen=True, kw_only=True)
class RandomLabel(Objective[Denoises]):
    """On noised forget images, pull the score at their own condition to the model's own score at another one.

    || eps(x_t, c_f) - sg[eps(x_t, c')] ||^2. With ``scope=saliency`` and ``training_loss`` on the retain items this is
    SalUn. The aim is the score of the model as it moves, not of the target.

    The value is the mean over the values of an item. The released code for CIFAR-10 takes the mean here and the sum
    over the 3 x 32 x 32 values in the retain term, so that its alpha = 0.001 is a ``retain.weight`` of 3.07.

    Args:
        instead: c' is the ``anchor`` of the item's concept, or the condition of a retain item drawn at each step
            (``random``). The released code takes the next class.
        states: ``data``, the forget images; ``generated`` draws images of them by the target, for data without images.
        items: forget items that are generated, >= 1.
        steps: DDIM steps of a generated item, from 2 to the model's timesteps.
        guidance: of generated items.

    Reference:
        Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification
        and Generation, 2024, the objective for image generation. arXiv:2310.12508
    """

    instead: Literal["anchor", "random"] = "anchor"
    states: Literal["data", "generated"] = "data"
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
        self.source.check(splits, split, "random_label")

    def prepare(self, model: Any, context: Context) -> None:
        """Draw images, where they are asked for."""
        if self.instead == "anchor":
            check_anchors(context, "random_label")
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the mean squared distance from the score at the other condition, (B,)."""
        found = self.source(model, batch, context)
        wanted = affine_target(model, found.x, found.t, [(1.0, self._other(model, batch, found, context))])
        return Values(mean_square(model.predict(found.x, found.t, found.condition) - wanted))

    def _other(self, model: Any, batch: Batch, found: States, context: Context) -> Condition:
        if found.anchor is not None and self.instead == "anchor":
            return found.anchor
        ids = context.splits["retain"].ids.to(batch["id"].device)
        drawn = ids[context.randomness.child("label").integers(batch["id"], len(ids))]
        return model.condition(context.batch("retain", drawn))  # type: ignore[no-any-return]
