"""What objectives, evaluators, edits and guards ask of a model: capabilities, as protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.conditioning import Condition
from unlearn.models.language.answers import Answers
from unlearn.models.recalled import Recalled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.models.gan.stylegan2.augment import Augment
    from unlearn.models.gan.stylegan2.generator import Noise
    from unlearn.models.language.tokenization import TextEncoder

M = TypeVar("M", bound="Model")  # what a component asks for, e.g. class NPO(Objective[HasLikelihood])
# the same for what only hands out models: a context of a model with more capabilities serves as well
M_co = TypeVar("M_co", bound="Model", covariant=True)


class Model(Protocol):
    """What every wrapper has of ``torch.nn.Module``."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return all parameters."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return all parameters with their names."""

    def modules(self) -> Iterator[nn.Module]:
        """Return all modules."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train or freeze all parameters."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Return all modules with their names."""

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module of a name."""

    def eval(self) -> Self:
        """Switch to evaluation mode."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the model in place."""


@runtime_checkable
class Trains(Model, Protocol):
    """Has a training loss."""

    def training_loss(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the loss per item, (B,), in the unit that the wrapper states."""


@runtime_checkable
class TrainsAgainst(Model, Protocol):
    """Is trained against another network, its adversary, which is trained at the same time: a GAN.

    Attributes:
        augment: how images are augmented before the adversary sees them, None for no augmentation; both losses take
            the probability of each transform.
        paths: weight of a penalty on path lengths in the model's loss, 0 for none.
    """

    augment: Augment | None
    paths: float

    def adversary(self, randomness: Randomness) -> nn.Module:
        """Return the initial adversary: new, or read from the model's file."""

    def adversary_loss(
        self, adversary: nn.Module, batch: Batch, randomness: Randomness, augmented: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return the adversary's loss per item, (B,), whose gradient does not reach the model, and its real logits."""

    def adversarial_loss(
        self,
        adversary: nn.Module,
        batch: Batch,
        randomness: Randomness,
        augmented: float = 0.0,
        length: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the model's loss per item, (B,), and, in a step that penalises path lengths, those, (B,).

        The adversary is frozen. ``length`` is the mean of the lengths of earlier steps, None where there were none.
        """


@runtime_checkable
class HasLikelihood(Model, Protocol):
    """Gives the likelihood of an item."""

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return log p(x) per item, (B,), in nats; noise for dequantisation comes from ``randomness``."""

    def dimensions(self, batch: Batch) -> Tensor:
        """Return the number of dimensions (values, tokens) per item, (B,); bits/dim divides by it."""


@runtime_checkable
class Samples(Model, Protocol):
    """Draws samples."""

    def sample(self, ids: Tensor, randomness: Randomness, like: Batch | None = None) -> Batch:
        """Draw one item per id, (B,) int64; the same id and randomness give the same latent in every model.

        Args:
            ids: which latents.
            randomness: of the latents.
            like: B items whose conditions (class, prompt) the samples are to have; a model without any ignores it.
        """


@runtime_checkable
class Recalls(Model, Protocol):
    """Draws an item again from a part of what it holds: what was memorised comes back."""

    def recall(self, batch: Batch, randomness: Randomness) -> Recalled:
        """Return the reconstructions and losses of B images, each with noise of its own id."""


@runtime_checkable
class Denoises(Model, Protocol):
    """Predicts the noise in x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, given a condition: a diffusion model."""

    @property
    def timesteps(self) -> int:
        """Number of timesteps T; t runs from 0 (clean) to T - 1."""

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the denoiser."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W) of what the denoiser takes."""

    def condition(self, batch: Batch) -> Condition:
        """Return the conditions of B items."""

    def null(self, n: int) -> Condition:
        """Return n null conditions."""

    def encode(self, condition: Condition) -> Condition:
        """Return encoded prompts, with gradient; classes and encoded prompts come back as they are."""

    def tables(self) -> list[nn.Embedding]:
        """Return the embedding tables of its conditions: words, or classes."""

    def prompts(self, texts: Sequence[str], whole: bool = False) -> Condition:
        """Return conditions of prompts or class names.

        Raises:
            RecipeError: the model does not know one, or the ``whole`` of a prompt is asked and cannot be read.
        """

    def latents(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the clean items x_0 of a batch of images, (B, C, H, W). Raises RecipeError where items have none."""

    def images(self, x0: Tensor) -> Tensor:
        """Return clean items (B, C, H, W) as images (B, C, H, W) uint8."""

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return eps(x_t, t, c) of x_t (B, C, H, W), t (B,) int64 and B conditions."""

    def guided(self, x: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
        """Return eps(c_n) + g (eps(c) - eps(c_n)) of one forward pass."""

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t."""

    def denoised(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the x_0 that eps implies."""

    def noise(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return x_T ~ N(0, 1), one per id."""

    def times(self, steps: int | None = None) -> Tensor:
        """Return the timesteps of a trajectory, (S,) int64, falling."""

    def trajectory(
        self, x: Tensor, condition: Condition, guidance: float | None = None, steps: int | None = None, first: int = 0
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the step, x after it) of deterministic DDIM from x before step ``first``."""


@runtime_checkable
class Continues(Model, Protocol):
    """Predicts tokens: a language model."""

    def answers(self, batch: Batch) -> Answers:
        """Return the logits at the answer tokens only."""

    def answer_states(self, batch: Batch) -> Tensor:
        """Return the last hidden states before each answer token, (N, D), in the order of ``answers``."""

    def head(self) -> nn.Module:
        """Return what turns ``answer_states`` into logits: (N, D) to (N, V)."""

    def generate(self, batch: Batch, new_tokens: int) -> Tensor:
        """Continue each prompt (form ``prompt``) greedily: (B, new_tokens) int64, -1 after the end."""

    def text(self, tokens: Tensor) -> list[str]:
        """Return generated tokens, (B, T), as text without special tokens, one per item."""


@runtime_checkable
class HasHiddenStates(Model, Protocol):
    """Exposes a layer's hidden states."""

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """Return the hidden states after a layer (1 is the first, -1 the last), (B, T, D); 0 gives the embeddings."""


@runtime_checkable
class HasLatents(Model, Protocol):
    """Turns latents into images, in two stages: a GAN."""

    def latent(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return z, (B, z_dim), one per id; the same id and randomness give the same in every model."""

    def mapping(self, z: Tensor) -> Tensor:
        """Map z to w, (B, w_dim)."""

    def synthesis(self, w: Tensor, noise: Noise = None) -> Tensor:
        """Map w, (B, w_dim) or one per layer (B, num_ws, w_dim), to images (B, C, H, W) in about [-1, 1]."""

    def both(self, w: Tensor, noise: Noise = None) -> tuple[Tensor, Tensor]:
        """Return the images and the last features from one forward pass."""

    def images(self, x: Tensor) -> Tensor:
        """Return images as grey levels, (B, C, H, W) uint8."""


@runtime_checkable
class InitialisesFromData(Model, Protocol):
    """Sets some of its parameters from the first batch (ActNorm)."""

    def initialise(self, batch: Batch, randomness: Randomness) -> None:
        """Run the data-dependent initialisation once, before the first training step."""


class LikelihoodSampler(HasLikelihood, Samples, Protocol):
    """Gives likelihoods and draws samples: a flow."""


class RecallingSampler(Recalls, Samples, Protocol):
    """Draws samples, and recalls items."""


class ImageDenoiser(Samples, Denoises, Protocol):
    """Draws samples by denoising: a diffusion model."""


class ImageGenerator(HasLatents, Protocol):
    """A GAN's generator with the sizes of its latents and images.

    They are no part of ``HasLatents``, which is checked at run time: reading ``w_avg`` of a new generator measures it.
    """

    @property
    def w_avg(self) -> Tensor:
        """Mean of w, (w_dim,)."""

    @property
    def w_dim(self) -> int:
        """Number of dimensions of w."""

    @property
    def num_ws(self) -> int:
        """Number of layers that take a w."""

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the weights."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def levels(self) -> int:
        """Number of grey levels of its images."""

    def pixels(self, batch: Batch) -> Tensor:
        """Return the images of a batch in [-1, 1], (B, C, H, W). Raises RecipeError where items have none."""


class AdversarialGenerator(ImageGenerator, TrainsAgainst, Protocol):
    """A GAN's generator that is trained further against a discriminator."""


class TokenizedLanguageModel(Continues, Protocol):
    """A language model of transformers with its tokenizer.

    Attributes:
        model: the network of transformers.
    """

    model: PreTrainedModel

    @property
    def encoder(self) -> TextEncoder:
        """Turns questions and answers into tokens."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer of transformers."""

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read a model from a folder."""


class TrainableLanguageModel(Trains, Continues, Protocol):
    """A language model that is trained further."""


CAPABILITIES: dict[str, type] = {
    "training_loss": Trains,
    "likelihood": HasLikelihood,
    "samples": Samples,
    "recalls": Recalls,
    "denoises": Denoises,
    "continues": Continues,
    "hidden_states": HasHiddenStates,
    "latents": HasLatents,
}
"""Capabilities by the name used in error messages; a plugin adds its own protocol when its module is imported."""
