"""Reads and writes diffusion models: folders of their parts, and pipelines of diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from unlearn.core.errors import RecipeError
from unlearn.models.diffusion.denoiser import Denoiser
from unlearn.models.diffusion.hub import ABOUT, PIPELINES, variant
from unlearn.models.diffusion.schedule import NoiseSchedule
from unlearn.models.diffusion.settings import DiffusionSettings, check_steps
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.lora import Adapter

SETTINGS = "unlearn.json"
"""File of the DiffusionSettings, next to the model's own files."""


NAMES = "id2label"
"""Names of DiT's classes, in model_index.json: number -> names, separated by commas."""

ZEROS = "force_zeros_for_empty_prompt"
"""Setting of a pipeline, kept in ``extras``: the null condition is zeros, not the encoded empty prompt (SDXL)."""

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
        pipeline: name of the pipeline of diffusers that the model came from and is saved as.
        extras: further components of that pipeline, which are kept unchanged.
    """

    denoiser: Denoiser
    scheduler: DDPMScheduler
    settings: DiffusionSettings
    text: TextSide | None = None
    vae: nn.Module | None = None
    pipeline: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def components(self) -> dict[str, Any]:
        """Return the parts by the names that pipelines of diffusers give them."""
        name = "transformer" if isinstance(self.denoiser, DiTTransformer2DModel) else "unet"
        parts: dict[str, Any] = {name: self.denoiser, "scheduler": self.scheduler}
        if self.vae is not None:
            parts["vae"] = self.vae
        if self.text is not None:
            for ending, encoder, tokenizer in zip(("", "_2"), self.text.encoders, self.text.tokenizers, strict=False):
                parts |= {f"text_encoder{ending}": encoder, f"tokenizer{ending}": tokenizer}
        return parts | self.extras


def read_parts(folder: Path, weights: bool = True) -> DiffusionParts:
    """Read a model folder. Raises RecipeError where something is missing or of an unknown kind.

    Args:
        folder: of a pipeline of diffusers, or of parts.
        weights: whether to read them; otherwise all modules are on the meta device.
    """
    inner = folder / "model"
    if not any((folder / name).is_file() for name in ABOUT) and any((inner / name).is_file() for name in ABOUT):
        raise RecipeError(f"{folder} is a run directory. Type {inner}")
    try:
        parts = (_from_pipeline if (folder / "model_index.json").is_file() else _from_folders)(folder, weights)
        timesteps = len(NoiseSchedule(parts.scheduler).alphas)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"{folder} holds no diffusion model that can be read ({error}). "
            "Type model.pretrained=FOLDER of a run's model/, or of a pipeline of diffusers."
        ) from error
    if (folder / SETTINGS).is_file():
        check_steps(parts.settings.steps, timesteps, "steps", f"{folder / SETTINGS}: ")
        if (parts.settings.one_step or 0) >= timesteps:
            raise RecipeError(
                f"{folder / SETTINGS}: one_step is {parts.settings.one_step}, and the model has {timesteps} "
                "timesteps. Give a smaller one."
            )
    return parts


def write_parts(model: DiffusionParts, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a model as the pipeline that it came from, or in its parts; in ``dtype``, by default its own."""
    parts = model.components()
    if dtype:  # converts copies, as the caller goes on with the unrounded weights
        parts = {n: deepcopy(part).to(dtype) if isinstance(part, nn.Module) else part for n, part in parts.items()}
    if model.pipeline is not None:
        kind = PIPELINES[model.pipeline]
        pipe = getattr(diffusers, model.pipeline)(**dict.fromkeys(kind.kept) | kind.left_out | parts)
        if NAMES in parts:  # diffusers reads it and forgets to write it
            pipe.register_to_config(**{NAMES: parts[NAMES]})
        pipe.save_pretrained(folder)
    else:
        for name, part in parts.items():
            part.save_pretrained(folder / name)
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
    """Return what ``unlearn.json`` says, None where there is none."""
    path = folder / SETTINGS
    return DiffusionSettings(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _from_folders(folder: Path, weights: bool) -> DiffusionParts:
    settings = read_settings(folder)
    if settings is None:
        raise RecipeError(f"{folder} holds no diffusion model: neither {SETTINGS} nor model_index.json is there.")
    place = folder / ("transformer" if (folder / "transformer").is_dir() else "unet")
    kind = json.loads((place / "config.json").read_text(encoding="utf-8"))["_class_name"]
    prompted = kind == "UNet2DConditionModel"
    _check_there(folder, [place.name, "scheduler", *["text_encoder", "tokenizer"] * prompted], kind)
    text = None
    if prompted:
        encoder = _module(CLIPTextModel, folder / "text_encoder", weights)
        text = TextSide([encoder], [AutoTokenizer.from_pretrained(folder / "tokenizer")])
    vae = _module(AutoencoderKL, folder / "vae", weights) if (folder / "vae").is_dir() else None
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    return DiffusionParts(_module(_DENOISERS[kind], place, weights), scheduler, settings, text, vae)


def _module(kind: Any, place: Path, weights: bool) -> Any:
    """Read a module of transformers or diffusers in single precision, or build it on the meta device."""
    of_transformers = issubclass(kind, PreTrainedModel)
    if weights:
        precision = {"dtype" if of_transformers else "torch_dtype": torch.float32}
        found, about = kind.from_pretrained(place, output_loading_info=True, **precision)
        if missing := sorted(about["missing_keys"]):
            raise ValueError(f"{place} has no weights for {missing[0]}")
        return found
    with torch.device("meta"):
        if of_transformers:
            return kind(kind.config_class.from_pretrained(place))
        return kind.from_config(kind.load_config(place))


def _full_pipeline(folder: Path, kind: str) -> Any:
    files = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    given = {"dtype": torch.float32, "variant": variant(files), "local_files_only": True}
    return getattr(diffusers, kind).from_pretrained(folder, **given, **PIPELINES[kind].left_out)


def _empty_pipeline(folder: Path, index: dict[str, Any]) -> Any:
    """Build a pipeline from the descriptions in a folder: modules on the meta device, tokenizers and scheduler."""
    kind = PIPELINES[index["_class_name"]]
    parts: dict[str, Any] = dict.fromkeys(kind.kept)
    for name in kind.needed:
        library, made = index[name]
        part = getattr(diffusers if library == "diffusers" else transformers, made)
        is_module = issubclass(part, nn.Module)
        parts[name] = _module(part, folder / name, False) if is_module else part.from_pretrained(folder / name)
    named = {key: index[key] for key in (NAMES, ZEROS) if key in index}
    return getattr(diffusers, index["_class_name"])(**parts | kind.left_out | named)


def _check_there(folder: Path, names: Sequence[str], whose: str) -> None:
    """Refuse a folder that lacks parts, which diffusers would look for on its hub."""
    if lacking := [f"{name}/" for name in names if not (folder / name).is_dir()]:
        raise RecipeError(f"{folder} lacks {', '.join(lacking)}, which a {whose} needs. Copy the whole folder.")


def _from_pipeline(folder: Path, weights: bool) -> DiffusionParts:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = index["_class_name"]
    if kind not in PIPELINES:
        raise RecipeError(f"{folder} holds a {kind}; pipelines that can be read are {', '.join(PIPELINES)}.")
    _check_there(folder, PIPELINES[kind].needed, kind)
    pipe = _full_pipeline(folder, kind) if weights else _empty_pipeline(folder, index)
    text = _text_side(pipe, folder) if "text_encoder" in PIPELINES[kind].needed else None
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    settings = read_settings(folder) or _settings_of(pipe)
    kept = {name: pipe.components[name] for name in ("scheduler", *PIPELINES[kind].kept)}
    extras = {name: part for name, part in kept.items() if part is not None}
    extras |= {NAMES: index[NAMES]} if text is None and NAMES in index else {}
    extras |= {ZEROS: pipe.config[ZEROS]} if ZEROS in pipe.config else {}
    return DiffusionParts(_denoiser(pipe), scheduler, settings, text, pipe.vae, kind, extras)


def _text_side(pipe: Any, folder: Path) -> TextSide:
    found = {name: part for name, part in pipe.components.items() if part is not None}
    encoders = [found[name] for name in ("text_encoder", "text_encoder_2") if name in found]
    if not all(isinstance(encoder, CLIPTextModel | CLIPTextModelWithProjection) for encoder in encoders):
        raise RecipeError(f"{folder}: the text encoders are no CLIP models, and no others can be read.")
    return TextSide(encoders, [found[name] for name in ("tokenizer", "tokenizer_2") if name in found])


def _denoiser(pipe: Any) -> Any:
    return pipe.transformer if "transformer" in pipe.components else pipe.unet


def _settings_of(pipe: Any) -> DiffusionSettings:
    """Return settings for a pipeline that has none of ours: its labels, and the usual steps and guidance."""
    denoiser = _denoiser(pipe)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)  # every level of the autoencoder but the last halves
    side = denoiser.config.sample_size * factor
    if "text_encoder" in pipe.components:
        return DiffusionSettings(shape=(3, side, side), steps=50, guidance=7.5)
    names = {int(number): name for name, number in (pipe.labels or {}).items()}
    classes = tuple(names.get(index, str(index)) for index in range(denoiser.config.num_embeds_ada_norm))
    return DiffusionSettings(shape=(3, side, side), classes=classes, steps=50, guidance=4.0)
