"""Ascent on the denoising loss at the concept."""

from dataclasses import dataclass, field
from typing import ClassVar

from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.objectives.base import Context, Values
from unlearn.objectives.diffusion.noisy_states import NoisyStateObjective, Source, StateSource


@dataclass(frozen=True, kw_only=True)
class DenoisingAscent(NoisyStateObjective[Denoises]):
    """Raise the denoising loss of forget items, each conditioned on its own prompt: -|| eps(x_t, c_f) - eps ||^2.

    Few-shot erasing trains the text encoder's MLPs and the attention of its last layer in this way, on four images and
    for a few steps: ``scope.kinds=[text_encoder_mlp, text_encoder_last_attention]``. Over the whole denoiser it is a
    baseline. Nothing bounds it. Unlike ``gradient_ascent``, which raises the training loss as it is, it drops no
    item's condition, so that unconditional samples are not attacked, and it can do without images.

    The value is minus the mean over the values of an item.

    Args:
        states: ``data``, the forget images (``images: 4`` in the paper); ``generated``, images of them that the target
            draws; ``noise``, standard normal numbers in place of images (the authors' zero-shot setting).

    Reference:
        Fuchi and Takagi, Erasing Concepts from Text-to-Image Diffusion Models with Few-shot Unlearning, 2024.
        arXiv:2405.07288
    """

    states: StateSource = field(default_factory=lambda: StateSource(source="data"))
    sources: ClassVar[tuple[Source, ...]] = ("data", "generated", "noise")

    def __call__(self, model: Denoises, batch: Batch, context: Context[Denoises]) -> Values:
        """Return minus the denoising loss, (B,)."""
        found = self.states(model, batch, context)
        assert found.noise is not None  # all three sources add noise
        loss = found.distance(model, found.noise)
        return Values(-loss, {"denoising_loss": loss.detach()})
