"""What methods and attacks ask of diffusion pipelines beyond the capability to denoise."""

from typing import Protocol

from torch import Tensor, nn

from unlearn.models.capabilities import Denoises, Samples, Trains
from unlearn.models.conditioning import Condition


class OneStepSettings(Protocol):
    """Settings of a denoiser that may be a one-step generator.

    Attributes:
        one_step: timestep from which it draws in one step; None for a diffusion model.
    """

    one_step: int | None


class PipelineDenoiser(Denoises, Protocol):
    """A denoiser with the parts of a pipeline: text encoders, autoencoder, and settings that unlearning may change."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts."""

    @property
    def text(self) -> nn.Module | None:
        """Text encoders; None for a model conditioned on classes."""

    @property
    def vae(self) -> nn.Module | None:
        """Autoencoder; None for a model in pixel space."""

    @property
    def settings(self) -> OneStepSettings:
        """What the weights do not say."""

    def generated(self, noise: Tensor, condition: Condition) -> Tensor:
        """Return x_0 of a one-step generator, with gradient, (B, C, H, W)."""


class PromptableDenoiser(Samples, PipelineDenoiser, Protocol):
    """A diffusion pipeline for which an attack searches other prompts."""


class TrainableDenoiser(Trains, PromptableDenoiser, Protocol):
    """A diffusion pipeline that an attack trains further."""
