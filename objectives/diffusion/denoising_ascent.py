"""Ascent on the denoising loss at the concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import StateSource
from unlearn.objectives.diffusion.score_targets import mean_square


@dataclass(frozen=True, kw_only=True)
class DenoisingAscent(Objective[Denoises]):
    """Raise the denoising loss of forget items, each told its condition: -|| eps(x_t, c_f) - eps ||^2.

    Few-shot erasing moves the text encoder's MLPs and the attention of its last layer in this way, on four images and
    for a few steps: ``scope.kinds=[text_encoder_mlp, text_encoder_last_attention]``. Over the whole denoiser it is a
    baseline. Nothing bounds it. Beside ``gradient_ascent``, which raises the training loss as it is, no item is told
    nothing, so that what the model draws unasked is not attacked, and no images are needed.

    The value is minus the mean over the values of an item.

    Args:
        states: ``data``, the forget images; ``generated``, images of them that the target draws; ``noise``, standard
            normal numbers in place of images (the authors' zero-shot setting).
        images: of the forget images (``data``) only so many are used, drawn once, >= 1; the paper takes 4. null takes
            all.
        items: forget items that are generated, >= 1.
        steps: DDIM steps of a generated item, from 2 to the model's timesteps.
        guidance: of generated items.

    Reference:
        Fuchi and Takagi, Erasing Concepts from Text-to-Image Diffusion Models with Few-shot Unlearning, 2024.
        arXiv:2405.07288
    """

    states: Literal["data", "generated", "noise"] = "data"
    images: int | None = None
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
        return StateSource(
            source=self.states, images=self.images, items=self.items, steps=self.steps, guidance=self.guidance
        )

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse items without images, where states are made of images."""
        self.source.check(splits, split, "denoising_ascent")

    def prepare(self, model: Any, context: Context) -> None:
        """Draw images, where they are asked for."""
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return minus the denoising loss, (B,)."""
        found = self.source(model, batch, context)
        loss = mean_square(model.predict(found.x, found.t, found.condition) - found.noise)
        return Values(-loss, {"denoising_loss": loss.detach()})
