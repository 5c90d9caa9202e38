"""What the engine asks of a model: a small core, and capabilities by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset, Split
from unlearn.models.conditioning import Condition

if TYPE_CHECKING:
    from unlearn.models.gan.stylegan2.augment import Augment
    from unlearn.models.lora import Adapter


class Wrapper(nn.Module, ABC):
    """A trained generator of one backend. Subclasses add capabilities: the protocols below.

    Attributes:
        family: flow, gan, diffusion or language.
    """

    family: ClassVar[str]

    @abstractmethod
    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write weights and configuration in the family's own format into an existing folder.

        Args:
            folder: where to.
            dtype: float type of the stored weights, by default the model's own.
        """

    @classmethod
    @abstractmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what ``save_pretrained`` wrote. Raises RecipeError where a file is missing or wrong."""

    def write_adapter(self, adapter: Adapter, folder: Path) -> None:
        """Write an adapter, whose names are those of this wrapper, into an existing folder, as others read it."""
        adapter.write(folder)

    def read(self, dataset: Dataset) -> Dataset:
        """Return the data as this model reads it (in its tokens, say); most models take it as it is."""
        return dataset

    def trainable(self) -> list[str]:
        """Return the names of the parameters that a loss can reach, in their order; scopes choose among them."""
        return [name for name, _ in self.named_parameters()]

    def beside_weights(self) -> dict[str, Any]:
        """Return what unlearning may change beside the weights; a file of changed weights cannot hold it."""
        return {}

    def check_fits(self, info: dict[str, Any]) -> None:
        """Refuse data described by ``info`` that the model was not built for, with a RecipeError."""

    @classmethod
    def adopt(cls, model: Any, info: dict[str, Any]) -> Self:
        """Wrap a user's own model in memory, for data described by ``info``; a backend that can overrides this."""
        raise RecipeError(f"{cls.__name__} cannot wrap a {type(model).__name__}. Give a {cls.__name__}, or a folder.")


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights, from which a run's needs can be told before anything large is read.

    Args:
        model: the wrapper on the meta device.
        activations: (split, items) -> bytes that the backward pass of a micro-batch of so many of the split's largest
            items asks for, beyond the weights.
        estimate: in words, how ``activations`` comes about.
        head: bytes of the copy of the last layer that terms comparing distributions keep of the target.
    """

    model: Wrapper
    activations: Callable[[Split, int], int]
    estimate: str
    head: int = 0


@dataclass
class ModelConfig(ABC):
    """Everything that shapes a model before training. One subclass beside each wrapper.

    Args:
        pretrained: folder of the target model, or hub id where the backend has a hub; by default the recipe trains
            it (or takes the copy that ships, or the cached one).
        retrained: folder of a model that never saw the forget data; by default the recipe trains it, unless
            ``pretrained`` is given.
        train: train the target and the retrained model anew, whatever ships or is cached.
    """

    pretrained: str | None = None
    retrained: str | None = None
    train: bool = False

    wrapper: ClassVar[type[Wrapper]]
    not_in_training: ClassVar[tuple[str, ...]] = ("pretrained", "retrained", "train")
    """Settings that do not shape a trained model, so that another value finds the same one."""

    def read(self, dataset: Dataset) -> Dataset:
        """Return the data as this model reads it (in its tokens, say); most models take it as it is."""
        return dataset

    def fetch(self, path: str) -> Path:
        """Return the folder that ``pretrained`` or ``retrained`` names; a backend with a hub overrides this."""
        folder = Path(path).expanduser()
        if not folder.exists():
            raise RecipeError(f"there is no folder {path!r}. Type an existing folder.")
        return folder

    def load(self, folder: Path) -> Wrapper:
        """Read a trained model; what the folder says of its shape counts, not this configuration."""
        return self.wrapper.from_pretrained(folder)

    def skeleton(self, precision: str) -> Skeleton | None:
        """Return the model that ``pretrained`` names without reading its weights, None where it can be tried at once.

        Args:
            precision: in which steps are computed (``trainer.precision``).
        """
        return None

    @abstractmethod
    def build(self, info: dict[str, Any], randomness: Randomness) -> Wrapper:
        """Build the untrained model for data described by ``info`` (see Dataset.info)."""


@runtime_checkable
class Trains(Protocol):
    """Has a training loss."""

    def training_loss(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the loss an item, (B,), in the unit that the wrapper states."""


@runtime_checkable
class TrainsAgainst(Protocol):
    """Is trained against another network, its adversary, which is trained beside it: a GAN.

    Attributes:
        augment: how images are augmented before the adversary sees them, None for not at all; both losses are told
            the probability of each transform.
        paths: weight of a penalty on path lengths in the model's loss, 0 for none.
    """

    augment: Augment | None
    paths: float

    def adversary(self, randomness: Randomness) -> nn.Module:
        """Return the adversary as it begins: new, or as the model's file has it."""

    def adversary_loss(
        self, adversary: nn.Module, batch: Batch, randomness: Randomness, augmented: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return the adversary's loss an item, (B,), whose gradient does not reach the model, and its real logits."""

    def adversarial_loss(
        self,
        adversary: nn.Module,
        batch: Batch,
        randomness: Randomness,
        augmented: float = 0.0,
        length: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the model's loss an item, (B,), and, in a step that penalises path lengths, those, (B,).

        The adversary holds still. ``length`` is the mean of the lengths of earlier steps, None where there were none.
        """


@runtime_checkable
class HasLikelihood(Protocol):
    """Gives the likelihood of an item."""

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return log p(x) an item, (B,), in nats; noise for dequantisation comes from ``randomness``."""

    def dimensions(self, batch: Batch) -> Tensor:
        """Return the number of dimensions (values, tokens) an item, (B,); bits/dim divides by it."""


@runtime_checkable
class Samples(Protocol):
    """Draws samples."""

    def sample(self, ids: Tensor, randomness: Randomness, like: Batch | None = None) -> Batch:
        """Draw one item an id, (B,) int64; the same id and randomness give the same latent in every model.

        Args:
            ids: which latents.
            randomness: of the latents.
            like: B items whose conditions (class, prompt) the samples are to have; a model without any ignores it.
        """


@runtime_checkable
class Denoises(Protocol):
    """Predicts the noise in x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, told a condition: a diffusion model."""

    def condition(self, batch: Batch) -> Condition:
        """Return what B items are."""

    def null(self, n: int) -> Condition:
        """Return n conditions that say nothing."""

    def encode(self, condition: Condition) -> Condition:
        """Return encoded prompts, with gradient; classes and encoded prompts come back as they are."""

    def tables(self) -> list[nn.Embedding]:
        """Return the tables in which it looks up what it is told: words, or classes."""

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return eps(x_t, t, c) of x_t (B, C, H, W), t (B,) int64 and B conditions."""

    def guided(self, x: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
        """Return eps(c_n) + g (eps(c) - eps(c_n)) of one forward pass."""

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t."""

    def denoised(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_0 as eps has it."""

    def noise(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return x_T ~ N(0, 1), one an id."""

    def times(self, steps: int | None = None) -> Tensor:
        """Return the timesteps of a trajectory, (S,) int64, falling."""

    def trajectory(
        self, x: Tensor, condition: Condition, guidance: float | None = None, steps: int | None = None, first: int = 0
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the step, x after it) of deterministic DDIM from x before step ``first``."""


@dataclass(frozen=True)
class Answers:
    """What a language model says of the answer tokens of a batch, N of them in all.

    Args:
        logits: (N, V), in single precision or better, with gradient: of the position before each answer token.
        targets: (N,) int64, the answer tokens.
        row: (N,) int64, ascending: which item of the batch each belongs to.
        size: number of items, B; an item without answer tokens has no row.
    """

    logits: Tensor
    targets: Tensor
    row: Tensor
    size: int

    def log_probs(self) -> Tensor:
        """Return log p of each answer token, (N,), in nats."""
        chosen: Tensor = self.logits.gather(1, self.targets[:, None]).squeeze(1)
        return chosen - self.logits.logsumexp(dim=1)

    @property
    def lengths(self) -> Tensor:
        """Return the number of answer tokens an item, (B,) int64."""
        return torch.bincount(self.row, minlength=self.size)

    @property
    def places(self) -> Tensor:
        """Return the place of each answer token in its answer, (N,) int64, from 0."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.row), device=self.row.device) - starts[self.row]

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum of values (N,) an item, (B,)."""
        return values.new_zeros(self.size).index_add(0, self.row, values)

    def means(self, values: Tensor) -> Tensor:
        """Return the mean of values (N,) an item, (B,); 0 for an item without answer tokens."""
        return self.sums(values) / self.lengths.clamp(min=1)


@runtime_checkable
class Continues(Protocol):
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
        """Return generated tokens, (B, T), as text without special tokens, one an item."""


@runtime_checkable
class HasHiddenStates(Protocol):
    """Shows what a layer hands on."""

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """Return the hidden states after a layer (1 is the first, -1 the last), (B, T, D); 0 gives the embeddings."""


@runtime_checkable
class HasLatents(Protocol):
    """Makes images of latents, in two stages: a GAN. Its attribute ``w_avg``, (w_dim,), is the mean of w."""

    def latent(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return z, (B, z_dim), one an id; the same id and randomness give the same in every model."""

    def mapping(self, z: Tensor) -> Tensor:
        """Map z to w, (B, w_dim)."""

    def synthesis(self, w: Tensor, noise: Any = "const") -> Tensor:
        """Map w, (B, w_dim) or one a layer (B, num_ws, w_dim), to images (B, C, H, W) in about [-1, 1]."""

    def features(self, w: Tensor, noise: Any = "const") -> Tensor:
        """Return the last features, (B, D, h, w), that become the images of w."""

    def images(self, x: Tensor) -> Tensor:
        """Return images as grey levels, (B, C, H, W) uint8."""


@runtime_checkable
class InitialisesFromData(Protocol):
    """Sets some of its parameters from the first batch (ActNorm)."""

    def initialise(self, batch: Batch, randomness: Randomness) -> None:
        """Run the data-dependent initialisation once, before the first training step."""


CAPABILITIES: dict[str, type] = {
    "training_loss": Trains,
    "likelihood": HasLikelihood,
    "samples": Samples,
    "denoises": Denoises,
    "continues": Continues,
    "hidden_states": HasHiddenStates,
    "latents": HasLatents,
}
"""Capabilities that objectives and evaluators ask for, by the name used in error messages. A new family adds its own
protocol here; a plugin does so when its module is imported."""
