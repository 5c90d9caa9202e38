"""The core of every model: its wrapper, its settings, and its stand-in on the meta device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os.path import expanduser
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError, some
from unlearn.core.float_types import round_to
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Split
from unlearn.models.capabilities import Model

if TYPE_CHECKING:
    from unlearn.models.lora import Adapter


class Wrapper(nn.Module, ABC):
    """A generative model of one family. Subclasses add capabilities: protocols of ``models/capabilities.py``.

    Attributes:
        family: flow, gan, diffusion or language.
        reads: keys of a batch, of which this family needs one; none are checked where there are none.
        saved: float types in which weights are saved, those of the folder that they came from, by their names in
            ``stored``; others are saved as in memory.
    """

    family: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    saved: Mapping[str, torch.dtype] = MappingProxyType({})

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

    def read_again(self, folder: Path, read: Callable[[Path], Wrapper]) -> Wrapper:
        """Return what a folder holds of this model, by ``read``; one that no folder describes overrides this."""
        return read(folder)

    @classmethod
    def read_by(cls, folder: Path) -> str:
        """Return the Python expression that reads what was saved in ``folder``, named ``model``, for its card."""
        return f'{cls.__name__}.from_pretrained(Path("model"))'

    def write_adapter(self, adapter: Adapter, folder: Path) -> None:
        """Write an adapter with this wrapper's names into an existing folder, in a format that other libraries read."""
        adapter.write(folder)

    @property
    def stored(self) -> nn.Module:
        """The network whose weights are saved, by its own names."""
        return self

    def types_to_save(self, dtype: torch.dtype | None) -> Mapping[str, torch.dtype]:
        """Return the float types of the stored weights where ``dtype`` is asked for, or nothing is."""
        return dict.fromkeys(self.stored.state_dict(), dtype) if dtype else self.saved

    def round_as_saved(self) -> None:
        """Round the weights, in place, to the float types that ``save_pretrained`` writes by default.

        Called once the steps have ended and before anything is measured, so that what is measured is what is saved.
        """
        round_to(self.stored, self.saved)

    def save_as_in_memory(self) -> None:
        """Save in the float types in memory from now on, not in those of the folder that the weights came from."""
        self.saved = {}

    def read(self, dataset: Dataset) -> Dataset:
        """Return the data as this model reads it (in its tokens, say); most models take it as it is."""
        return dataset

    def trainable(self) -> list[str]:
        """Return the names of the parameters that a loss can reach, in their order; scopes choose among them."""
        return [name for name, _ in self.named_parameters()]

    def beside_weights(self) -> dict[str, Any]:
        """Return settings that unlearning may change besides weights; a file of changed weights cannot hold them."""
        return {}

    def check_fits(self, info: dict[str, Any]) -> None:
        """Refuse data described by ``info`` that the model was not built for, with a RecipeError."""

    @classmethod
    def check_items(cls, dataset: Dataset) -> None:
        """Try two items of data as this family reads them. Raises RecipeError where they are of another family's."""
        ids = torch.arange(min(2, len(dataset)))
        batch = Split("tried", dataset, ids).batch(ids) if len(ids) else {}
        if batch and cls.reads and not any(key in batch for key in cls.reads):
            raise RecipeError(
                f"The items of the data have {', '.join(batch)}, and a {cls.family} model reads "
                f"{' or '.join(cls.reads)}. Type other data=NAME, or another model."
            )

    @classmethod
    def adopt(cls, model: Any, info: dict[str, Any]) -> Self:
        """Wrap a user's own model in memory, for data described by ``info``; a backend that can overrides this."""
        raise RecipeError(f"{cls.__name__} cannot wrap a {type(model).__name__}. Give a {cls.__name__}, or a folder.")


@dataclass(frozen=True)
class MetaModel:
    """The model on the meta device, used to estimate memory before any weights are loaded.

    Args:
        model: the wrapper on the meta device.
        activations: (split, items) -> bytes that the backward pass of a micro-batch needs beyond the weights, for so
            many of the split's largest items.
        estimate: how ``activations`` is estimated, in words.
        head: bytes of the copy of the last layer that terms comparing distributions keep of the target.
    """

    model: Wrapper
    activations: Callable[[Split, int], int]
    estimate: str
    head: int = 0


@dataclass
class ModelConfig(ABC):
    """Settings that shape a model before training; one subclass per kind of model, in its family's ``config.py``.

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
    built_from: ClassVar[tuple[str, ...]] = ()
    """Entries of ``Dataset.info`` that ``build`` takes."""

    def data_as_read(self, dataset: Dataset) -> Dataset:
        """Return the data as this model reads it. Raises RecipeError where they are not for a model of this kind."""
        found = self.read(dataset)
        lacking = [key for key in self.built_from if key not in found.info]
        if self.pretrained is None and lacking:
            raise RecipeError(
                f"model: {type(self).__name__} is built for the {' and '.join(lacking)} of the data, and "
                f"{type(dataset).__name__} has none. Type other data=NAME, or model.pretrained=FOLDER."
            )
        self.wrapper.check_items(found)
        return found

    def in_training(self) -> dict[str, Any]:
        """Return the settings that shape a trained model; where they agree, a cached one is found."""
        return {name: value for name, value in asdict(self).items() if name not in self.not_in_training}

    def read(self, dataset: Dataset) -> Dataset:
        """Return the data as this model reads it (in its tokens, say); most models take it as it is."""
        return dataset

    def fetch(self, path: str, weights: bool = True) -> Path:
        """Return the folder that ``pretrained`` or ``retrained`` names; a backend with a hub overrides this.

        Args:
            path: folder, or what else the backend knows.
            weights: whether it must hold the weights; its description is enough otherwise.
        """
        folder = Path(expanduser(path))
        if not folder.is_dir():
            raise RecipeError(f"there is no folder {path!r}. Type an existing folder.")
        return folder

    def load(self, folder: Path) -> Wrapper:
        """Read a trained model; what the folder says of its shape counts, not this configuration."""
        return self.wrapper.from_pretrained(folder)

    def meta_model(self, precision: str) -> MetaModel | None:
        """Return the model that ``pretrained`` names without reading its weights, None where it can be tried at once.

        Args:
            precision: in which steps are computed (``trainer.precision``).
        """
        return None

    def fastest(self) -> Self:
        """Return settings under which a model with the same weights samples as fast as it can, for ``--check``."""
        return self

    @abstractmethod
    def build(self, info: dict[str, Any], randomness: Randomness) -> Wrapper:
        """Build the untrained model for data described by ``info`` (see Dataset.info)."""


REMEDY = "Copy the folder again, or remove model.pretrained (or set model.train=true) to train the model anew."
"""Ends the message on a broken model folder."""


def stored_weights(network: nn.Module, types: Mapping[str, torch.dtype] | None = None) -> dict[str, Tensor]:
    """Return a network's weights as a file takes them; floating-point ones in the types of their names, if any."""
    found = {}
    for name, value in network.state_dict().items():
        asked = types.get(name, value.dtype) if types and value.is_floating_point() else value.dtype
        found[name] = value.to(asked).detach().cpu().contiguous()
    return found


FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Float types by the names that safetensors gives them."""


def stored_dtype(files: Iterable[Path]) -> torch.dtype:
    """Return the float type of most of the weights in files (.safetensors, .bin), float32 where there are none."""
    sizes: Counter[torch.dtype] = Counter()
    for path in files:
        for _, dtype, size in _stored(path):
            if dtype is not None:
                sizes[dtype] += size
    return max(sizes, key=lambda kind: sizes[kind], default=torch.float32)


def _stored(path: Path) -> list[tuple[str, torch.dtype | None, int]]:
    """Return (name, float type, number of values) of each tensor in a file; the type is None for another kind."""
    with reading(path, "Copy the file again."):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
                return [
                    (name, FLOATS.get(part.get_dtype()), math.prod(part.get_shape())) for name, part in parts.items()
                ]
        if path.suffix == ".bin":
            weights = torch.load(path, map_location="meta", weights_only=True)
            tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
            return [
                (name, value.dtype if value.is_floating_point() else None, value.numel())
                for name, value in tensors.items()
            ]
    return []


def stored_dtypes(network: nn.Module, files: Iterable[Path]) -> dict[str, torch.dtype]:
    """Return the float types in which files hold a network's weights, by the names that they have in the network.

    A weight that has another name there (with a prefix, or without) is found by the end that both names share. One that
    is not there at all has the type of the one that it is tied to or, as where several were made one, the type of most.
    """
    files = list(files)
    most = stored_dtype(files)
    found = {name: dtype for path in files for name, dtype, _ in _stored(path) if dtype is not None}
    weights = {name: each for name, each in network.state_dict(keep_vars=True).items() if each.is_floating_point()}
    types, tied = {}, {}
    for name, weight in weights.items():
        alike = [other for other in found.keys() - weights.keys() if _have_one_end(name, other)]
        if name in found or len(alike) == 1:
            types[name] = tied[id(weight)] = found.get(name) or found[alike[0]]
    return {name: types.get(name) or tied.get(id(weight), most) for name, weight in weights.items()}


def _have_one_end(name: str, other: str) -> bool:
    return name.endswith(f".{other}") or other.endswith(f".{name}")


def refuse_other_kinds(network: nn.Module, files: Iterable[Path]) -> None:
    """Refuse files that hold weights of a network as whole numbers or in eight bits, which would be read as they are.

    Raises:
        RecipeError: one of them does, as after a quantisation that the folder does not mention.
    """
    wanted = [name for name, value in network.state_dict().items() if value.is_floating_point()]
    for path in files:
        odd = [name for name, dtype, _ in _stored(path) if dtype is None]
        known = [name for name in odd if any(name == own or f".{own}".endswith(f".{name}") for own in wanted)]
        if known:
            raise RecipeError(
                f"{path} holds weights that are no floating-point numbers of 16, 32 or 64 bits, as after quantisation: "
                f"{some(known)}. Type the model in bfloat16 or float32."
            )


def refuse_not_finite(network: nn.Module, where: object) -> None:
    """Refuse weights that are nan or infinite, by their tensors' names.

    Raises:
        RecipeError: a parameter or buffer of the network is not finite; ``where`` it was read begins the message.
    """
    if found := not_finite(network.state_dict()):
        raise RecipeError(
            f"{where} holds weights that are not finite, in {some(found)}. Give a model whose weights are numbers."
        )


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold nan or infinity."""
    return [
        name for name, value in weights.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]


def check_stored_shapes(network: nn.Module, folder: Path) -> None:
    """Compare the shapes that the files of weights in a folder state with a network's; no weight is read.

    Raises:
        RecipeError: a tensor has another shape than the network's of the same name, or a file cannot be read.
    """
    wanted = {name: list(value.shape) for name, value in network.state_dict().items()}
    for path in sorted(folder.glob("*.safetensors")):
        with reading(path, "Copy the file again."), safe_open(path, "pt") as file:
            names = wanted.keys() & set(file.keys())
            found = {name: file.get_slice(name).get_shape() for name in sorted(names)}
        for name, shape in found.items():
            if shape != wanted[name]:
                raise RecipeError(
                    f"{path} holds {name} as {shape}, and the configuration beside it asks for {wanted[name]}. "
                    "Type a folder whose config.json and weights belong together."
                )


@contextmanager
def frozen(network: Model) -> Iterator[None]:
    """Freeze a network while the body runs: no gradient is taken for its parameters."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
