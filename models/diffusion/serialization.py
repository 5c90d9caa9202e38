"""Reads and writes diffusion models: folders of their parts, and pipelines of diffusers."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import diffusers
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError, some
from unlearn.core.float_types import in_types
from unlearn.core.folders import check_folder, read_mapping
from unlearn.models.base import check_stored_shapes, refuse_not_finite, refuse_other_kinds, stored_dtypes
from unlearn.models.diffusion.autoencoder import check_vae, shrinking
from unlearn.models.diffusion.denoiser import Denoiser
from unlearn.models.diffusion.hub import ABOUT, WeightFiles, best_set
from unlearn.models.diffusion.pipeline import INDEX, PipelineFolder, class_names, read_pipeline
from unlearn.models.diffusion.schedule import read_scheduler
from unlearn.models.diffusion.settings import DiffusionSettings, check_steps
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.diffusion.widths import check_parts, sides
from unlearn.models.lora import Adapter

SETTINGS = "unlearn.json"
"""File of the DiffusionSettings, next to the model's own files."""

REMEDY = "Type model.pretrained=FOLDER of a run's model/, or of a pipeline of diffusers."
"""Ends the message on a folder that cannot be read."""

_DENOISERS = {network.__name__: network for network in get_args(Denoiser)}


@dataclass
class DiffusionParts:
    """The components of a diffusion model, as ``Diffusion`` takes them.

    Args:
        denoiser: UNet2DConditionModel (prompts), UNet2DModel or DiTTransformer2DModel (classes).
        scheduler: of diffusers; its noise schedule and prediction type count.
        settings: see DiffusionSettings.
        text: text encoders, for a model that takes prompts.
        vae: AutoencoderKL, for a model in latent space.
        pipeline: the rest of the pipeline of diffusers that the model came from and is saved as.
        saved: float types of stored weights, by component and name; one that is not there is stored as in memory.
    """

    denoiser: Denoiser
    scheduler: Any
    settings: DiffusionSettings
    text: TextSide | None = None
    vae: nn.Module | None = None
    pipeline: PipelineFolder | None = None
    saved: dict[str, dict[str, torch.dtype]] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by the names that pipelines of diffusers give them."""
        name = "transformer" if isinstance(self.denoiser, DiTTransformer2DModel) else "unet"
        denoiser: Any = self.denoiser  # diffusers does not say that it is a module
        found: dict[str, nn.Module] = {name: denoiser}
        if self.vae is not None:
            found["vae"] = self.vae
        encoders = self.text.encoders if self.text is not None else ()
        return found | {f"text_encoder{ending}": each for ending, each in zip(("", "_2"), encoders, strict=False)}


def read_parts(folder: Path, weights: bool = True) -> DiffusionParts:
    """Read a model folder. Raises RecipeError where something is missing, wrong or of an unknown kind.

    Args:
        folder: of a pipeline of diffusers, or of parts.
        weights: whether to read them; otherwise all modules are on the meta device.
    """
    inner = folder / "model"
    if not any((folder / name).is_file() for name in ABOUT) and any((inner / name).is_file() for name in ABOUT):
        raise RecipeError(f"{folder} is a run directory. Type {inner}")
    if folder.is_dir():
        check_folder(folder)
    parts = (_from_pipeline if (folder / INDEX).is_file() else _from_folders)(folder, weights)
    timesteps = len(parts.scheduler.alphas_cumprod)
    if (folder / SETTINGS).is_file():
        check_steps(parts.settings.steps, timesteps, "steps", f"{folder / SETTINGS}: ")
        if (parts.settings.one_step or 0) >= timesteps:
            raise RecipeError(
                f"{folder / SETTINGS}: one_step is {parts.settings.one_step}, and the model has {timesteps} "
                "timesteps. Give a smaller one."
            )
    if parts.vae is not None:
        check_vae(parts.vae, parts.pipeline is not None and parts.pipeline.kind.statistics, folder / "vae")
    check_parts(parts.denoiser, parts.text, parts.vae, parts.settings, folder)
    for name, part in parts.modules().items() if not weights else ():
        check_stored_shapes(part, folder / name)
    return parts


def write_parts(model: DiffusionParts, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a model as the pipeline that it came from, or in its parts.

    Args:
        model: whose components are written.
        folder: where to; it exists.
        dtype: float type of the stored weights, by default ``model.saved``.
    """
    for name, part in model.modules().items():
        types = dict.fromkeys(part.state_dict(), dtype) if dtype else model.saved.get(name, {})
        writes: Any = in_types(part, types)  # a copy, as the caller goes on with the unrounded weights
        writes.save_pretrained(folder / name)
    if model.pipeline is not None:
        model.pipeline.write(folder)
    else:
        tokenizers = model.text.tokenizers if model.text is not None else []
        for name, other in (("scheduler", model.scheduler), *(("tokenizer", each) for each in tokenizers)):
            other.save_pretrained(folder / name)
    for file in folder.rglob("config.json"):  # diffusers notes the path that a part was read from
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / SETTINGS).write_text(json.dumps(asdict(model.settings), indent=2) + "\n", encoding="utf-8")


def write_adapter(model: DiffusionParts, adapter: Adapter, folder: Path) -> None:
    """Write an adapter into an existing folder.

    Of a model that takes prompts it is ``pytorch_lora_weights.safetensors``, with the settings of peft in the file's
    metadata. diffusers has no loader for models conditioned on classes: of those, the denoiser's adapter is written in
    peft's layout. An autoencoder has none, as no loss reaches it.
    """
    denoiser = adapter.inside("denoiser")
    if model.text is None:
        assert denoiser is not None  # there is nothing else that could be adapted
        denoiser.write(folder)
        return
    written: dict[str, Any] = {}
    for name, part in (
        ("unet", denoiser),
        ("text_encoder", adapter.inside("text.encoders.0")),
        ("text_encoder_2", adapter.inside("text.encoders.1")),
    ):
        if part is None:
            continue
        weights = dict(part.weights)
        if name != "unet":  # diffusers reads peft's own names of attention alone, and these of every layer
            for old, new in ((".lora_A.", ".lora_linear_layer.down."), (".lora_B.", ".lora_linear_layer.up.")):
                weights = {key.replace(old, new): weight for key, weight in weights.items()}
        config: Any = part.config  # peft does not type it
        written |= {f"{name}_lora_layers": weights, f"{name}_lora_adapter_metadata": config.to_dict()}
    two = len(model.text.encoders) == 2
    kind: Any = diffusers.StableDiffusionXLPipeline if two else diffusers.StableDiffusionPipeline
    kind.save_lora_weights(folder, **written)


def read_settings(folder: Path) -> DiffusionSettings | None:
    """Return what ``unlearn.json`` says, None where there is none. Raises RecipeError where it says no settings."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    stated = read_mapping(path)
    try:
        return DiffusionSettings(**stated)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path} does not describe a diffusion model ({error}). {REMEDY}") from error


def _from_folders(folder: Path, weights: bool) -> DiffusionParts:
    settings = read_settings(folder)
    if settings is None:
        raise RecipeError(
            f"{folder} holds no diffusion model: neither {SETTINGS} nor {INDEX} is there, so there is none that can be "
            f"read. {REMEDY}"
        )
    place = "transformer" if (folder / "transformer").is_dir() else "unet"
    _check_there(folder, [place, "scheduler"], "diffusion model")
    kind = read_mapping(folder / place / "config.json").get("_class_name") if _described(folder / place) else None
    if kind not in _DENOISERS:
        raise RecipeError(
            f"{folder / place} is a {str(kind)[:100]}; networks that can be read are {', '.join(_DENOISERS)}. {REMEDY}"
        )
    kinds: dict[str, Any] = {place: _DENOISERS[kind]}
    if kind == "UNet2DConditionModel":
        _check_there(folder, ["text_encoder", "tokenizer"], kind)
        kinds["text_encoder"] = CLIPTextModel
    if (folder / "vae").is_dir():
        kinds["vae"] = AutoencoderKL
    found, saved = _modules(folder, kinds, weights)
    text = None
    if "text_encoder" in found:
        text = TextSide([found["text_encoder"]], [_tokenizer(folder / "tokenizer")])
    scheduler = read_scheduler(folder / "scheduler")
    return DiffusionParts(found[place], scheduler, settings, text, found.get("vae"), saved=saved)


def _from_pipeline(folder: Path, weights: bool) -> DiffusionParts:
    pipeline = read_pipeline(folder)
    found, saved = _modules(folder, {name: pipeline.made(name) for name in pipeline.kind.modules}, weights)
    encoders = [found[name] for name in ("text_encoder", "text_encoder_2") if name in found]
    tokenizers = [_tokenizer(folder / name, pipeline.made(name)) for name in pipeline.kind.tokenizers]
    text = TextSide(encoders, tokenizers) if encoders else None
    scheduler = read_scheduler(folder / "scheduler", pipeline.index["scheduler"][1])
    denoiser = found["transformer" if "transformer" in found else "unet"]
    settings = read_settings(folder) or _settings_of(pipeline, denoiser, found["vae"])
    return DiffusionParts(denoiser, scheduler, settings, text, found["vae"], pipeline, saved)


def _modules(
    folder: Path, kinds: dict[str, Any], weights: bool
) -> tuple[dict[str, Any], dict[str, dict[str, torch.dtype]]]:
    """Return modules by the names of their folders, and the float types that their weights are stored in."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*")) if path.is_file()]
    found, saved = {}, {}
    for name, kind in kinds.items():
        files = best_set(names, name) if weights else None
        if weights and files is None:
            raise RecipeError(f"{folder / name} holds no weights (*.safetensors, or *.bin). Copy the whole folder.")
        found[name] = _module(kind, folder / name, files)
        if files is not None:
            saved[name] = stored_dtypes(found[name], (folder / file for file in files.files))
    return found, saved


def _module(kind: Any, place: Path, files: WeightFiles | None) -> Any:
    """Read a module of transformers or diffusers in single precision, or build it on the meta device.

    Args:
        kind: its class.
        place: its folder.
        files: that hold its weights; None builds it on the meta device.
    """
    of_transformers = issubclass(kind, PreTrainedModel)
    if not _described(place):
        raise RecipeError(f"{place / 'config.json'} is missing. Copy the whole folder.")
    stated = read_mapping(place / "config.json")
    other = stated.get("_class_name", kind.__name__)
    if not of_transformers and other != kind.__name__:
        raise RecipeError(f"{place} is a {str(other)[:100]}, and a {kind.__name__} is needed. {REMEDY}")
    if stated.get("quantization_config"):
        raise RecipeError(
            f"{place} is quantised (quantization_config), so it cannot be trained. Type the full weights."
        )
    if (place / "adapter_config.json").exists():  # transformers would look for its base, wherever that is
        raise RecipeError(
            f"{place} holds an adapter of peft beside the weights. Merge it, and save the whole pipeline."
        )
    if files is None:
        with reading(place, REMEDY), torch.device("meta"):
            stated_config = (kind.config_class.from_pretrained if of_transformers else kind.load_config)(place)
            return (kind if of_transformers else kind.from_config)(stated_config)
    given = {
        "dtype" if of_transformers else "torch_dtype": torch.float32,
        "variant": files.variant or None,
        "use_safetensors": any(".safetensors" in name for name in files.files),
        "local_files_only": True,
    }
    with reading(place, REMEDY), _without_report():
        found, about = kind.from_pretrained(place, output_loading_info=True, **given)
    if missing := sorted(about["missing_keys"]):
        raise RecipeError(
            f"{place} has no weights for {some(missing)}, which would be random. Copy the folder again, or save the "
            "whole model."
        )
    # older folders of CLIP hold the numbers of positions, which are no weights
    if extra := sorted(name for name in about["unexpected_keys"] if not name.endswith("position_ids")):
        raise RecipeError(
            f"{place} holds weights that its {kind.__name__} has no place for, and that would be lost: {some(extra)}. "
            "Type the folder of a model that is read whole, or mend its config.json."
        )
    refuse_other_kinds(found, [place.parent / name for name in files.files])
    refuse_not_finite(found, place)
    return found


@contextmanager
def _without_report() -> Iterator[None]:
    """Silence the table that transformers prints of weights that do not fit; what is wrong is said in a sentence."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _tokenizer(place: Path, kind: Any = AutoTokenizer) -> Any:
    with reading(place, REMEDY):
        tokenizer = kind.from_pretrained(place, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RecipeError(f"{place} holds a {type(tokenizer).__name__}, not a tokenizer. {REMEDY}")
    return tokenizer


def _described(place: Path) -> bool:
    return (place / "config.json").is_file()


def _check_there(folder: Path, names: Sequence[str], whose: str) -> None:
    """Refuse a folder that lacks parts, which diffusers would look for on its hub."""
    if lacking := [f"{name}/" for name in names if not (folder / name).is_dir()]:
        raise RecipeError(f"{folder} lacks {', '.join(lacking)}, which a {whose} needs. Copy the whole folder.")


def _settings_of(pipeline: PipelineFolder, denoiser: Any, vae: Any) -> DiffusionSettings:
    """Return settings for a pipeline that has none of ours: its labels, and the usual steps and guidance."""
    height, width = (side * shrinking(vae) for side in sides(denoiser))
    shape = (vae.config.out_channels, height, width)
    if pipeline.kind.tokenizers:
        return DiffusionSettings(shape=shape, steps=50, guidance=7.5)
    classes = class_names(pipeline.index, denoiser.config.num_embeds_ada_norm)
    return DiffusionSettings(shape=shape, classes=classes, steps=50, guidance=4.0)
