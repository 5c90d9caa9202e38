"""Folders of pipelines of diffusers: what is read of them, and what is written back as it came."""

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import diffusers
import transformers
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from unlearn.core.errors import RecipeError
from unlearn.core.files import write_bytes
from unlearn.core.folders import read_mapping
from unlearn.models.diffusion.hub import best_set, is_weights

INDEX = "model_index.json"
"""File that names the components of a pipeline."""

NAMES = "id2label"
"""Names of DiT's classes, in the index: number -> names, separated by commas."""

ZEROS = "force_zeros_for_empty_prompt"
"""Setting of a pipeline: the null condition is zeros, not the encoded empty prompt (SDXL)."""

Content = bytes | mmap.mmap


@dataclass(frozen=True)
class Pipeline:
    """What is read of a kind of pipeline of diffusers.

    Args:
        modules: components with weights that are read, and the classes that they may have.
        tokenizers: components that write prompts in tokens, one for each text encoder.
        zeros: ``ZEROS`` where the index does not say it.
        statistics: whether the pipeline uses the mean and deviation of the autoencoder's latents.
    """

    modules: dict[str, tuple[type, ...]]
    tokenizers: tuple[str, ...] = ()
    zeros: bool = False
    statistics: bool = False


PIPELINES = {
    "StableDiffusionPipeline": Pipeline(
        {"vae": (AutoencoderKL,), "text_encoder": (CLIPTextModel,), "unet": (UNet2DConditionModel,)}, ("tokenizer",)
    ),
    "StableDiffusionXLPipeline": Pipeline(
        {
            "vae": (AutoencoderKL,),
            "text_encoder": (CLIPTextModel, CLIPTextModelWithProjection),
            "text_encoder_2": (CLIPTextModelWithProjection,),
            "unet": (UNet2DConditionModel,),
        },
        ("tokenizer", "tokenizer_2"),
        zeros=True,
        statistics=True,
    ),
    "DiTPipeline": Pipeline({"vae": (AutoencoderKL,), "transformer": (DiTTransformer2DModel,)}),
}
"""Pipelines that can be read; each is saved as it came. Sampling here is DDIM whatever the scheduler."""


@dataclass(frozen=True)
class PipelineFolder:
    """What a pipeline came with besides the weights that are read.

    Args:
        index: content of ``model_index.json``.
        kept: files of the components that are written back as they are (tokenizers, scheduler, safety checker, ...),
            by their place in the folder. The files stay open, so that they are there even once the folder is not.
    """

    index: dict[str, Any]
    kept: dict[str, Content] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """Name of the pipeline's class."""
        return str(self.index["_class_name"])

    @property
    def kind(self) -> Pipeline:
        """What is read of it."""
        return PIPELINES[self.name]

    @property
    def zeros(self) -> bool:
        """Whether the null condition is zeros."""
        return bool(self.index.get(ZEROS, self.kind.zeros))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    def made(self, component: str) -> Any:
        """Return the class of a component, None where the installed libraries have none of this name."""
        library, name = self.index[component]
        return getattr(diffusers if library == "diffusers" else transformers, name, None)

    def write(self, folder: Path) -> None:
        """Write the index and the components that were kept into an existing folder."""
        for name, content in self.kept.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, content[:])
        index = {key: value for key, value in self.index.items() if key != "_name_or_path"}
        write_bytes(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def read_pipeline(folder: Path) -> PipelineFolder:
    """Return the index of a pipeline's folder, and its components that are kept as they are; runs no code of it.

    Raises:
        RecipeError: the pipeline is of an unknown kind, a component is missing, is of a class that is not read, or
            would be made by code that the folder brings along.
    """
    index = read_mapping(folder / INDEX)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or "custom_pipeline" in index:
        raise _brings_code(folder, index.get("custom_pipeline", kind))
    if kind not in PIPELINES:
        raise RecipeError(f"{folder} holds a {kind}; pipelines that can be read are {', '.join(PIPELINES)}.")
    components = {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}
    for name, value in components.items():
        _check_component(folder, name, value)
    needed = [*PIPELINES[kind].modules, *PIPELINES[kind].tokenizers, "scheduler"]
    present = [name for name, value in components.items() if value[0] is not None]
    if lacking := [f"{name}/" for name in needed if name not in present or not (folder / name).is_dir()]:
        raise RecipeError(f"{folder} lacks {', '.join(lacking)}, which a {kind} needs. Copy the whole folder.")
    found = PipelineFolder(index)
    for name, allowed in PIPELINES[kind].modules.items():
        if found.made(name) not in allowed:
            raise RecipeError(
                f"{folder / name} is a {str(components[name][1])[:100]}; that of a {kind} is read only as "
                f"{' or '.join(each.__name__ for each in allowed)}. Type another pipeline."
            )
    _refuse_auto_map(folder)
    read = PIPELINES[kind].modules
    for name in present:
        if name not in read and (folder / name).is_dir():
            found.kept.update(_files(folder, name))
    return found


def class_names(index: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the names of DiT's classes, the last in the alphabet where one has several; its number where none."""
    stated = index.get(NAMES) or {}
    if not isinstance(stated, dict) or not all(str(key).isdigit() and isinstance(stated[key], str) for key in stated):
        raise RecipeError(f"{INDEX}: {NAMES} must be an object of numbers and names. Copy the file again.")
    numbers = {name.strip(): int(key) for key, entry in stated.items() for name in entry.split(",")}
    names = {number: name for name, number in sorted(numbers.items())}
    return tuple(names.get(number, str(number)) for number in range(count))


def _check_component(folder: Path, name: str, value: list[Any]) -> None:
    """Refuse a component that is no folder beside the index, or that no installed library makes."""
    if not name.isidentifier() or len(value) != 2:
        raise RecipeError(f"{folder / INDEX}: {name[:200]!r} is no component of a pipeline. Copy the file again.")
    library, made = value
    if library is None and made is None:
        return
    if library in ("diffusers", "transformers"):
        home: Any = diffusers if library == "diffusers" else transformers
    else:  # as diffusers looks it up: the package of a pipeline, or a module of the folder's own
        home = getattr(diffusers.pipelines, library, None) if isinstance(library, str) else None
    if not isinstance(home, ModuleType):
        raise _brings_code(folder, f"{name}: {value}")
    if not isinstance(made, str):
        raise RecipeError(f"{folder / INDEX}: {name} names no class. Copy the file again.")


def _refuse_auto_map(folder: Path) -> None:
    for path in sorted(folder.glob("*/*config.json")):
        if "auto_map" in (stated := read_mapping(path)):
            raise _brings_code(path, stated["auto_map"])


def _brings_code(place: Path, what: object) -> RecipeError:
    return RecipeError(
        f"{place} needs code that it brings along ({str(what)[:200]}), and code in a folder is never run "
        "(trust_remote_code=False). Type a pipeline whose classes diffusers and transformers themselves have."
    )


def _files(folder: Path, component: str) -> dict[str, Content]:
    """Return the files of a component by their place, of its weights only the set that is read."""
    paths = [path for path in sorted((folder / component).rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    weights = best_set(names, component)
    found: dict[str, Content] = {}
    for path, name in zip(paths, names, strict=True):
        if is_weights(name) and weights is not None and name not in weights.files:
            continue
        content = _opened(path)
        if weights is not None and weights.variant and name in weights.files:  # the others are written without one
            name = name.replace(f".{weights.variant}", "")
            if name.endswith(".json"):
                content = content[:].replace(f".{weights.variant}".encode(), b"")
        found[name] = content
    return found


def _opened(path: Path) -> Content:
    """Return a file's content, which takes no memory before it is written."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
