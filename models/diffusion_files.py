"""The files of diffusion models: folders of their parts, and pipelines of diffusers."""

from __future__ import annotations

import inspect
import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiTTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

from unlearn.errors import RecipeError
from unlearn.models.diffusion_text import TextSide
from unlearn.models.diffusion_wrapper import Diffusion, DiffusionSettings

Model = TypeVar("Model", bound=Diffusion)

SETTINGS = "unlearn.json"
"""Beside the model's own files: what they do not say."""

GUARD = "guard.json"
"""Beside the files of an unchanged model: what stands around it (unlearn.models.guards.guidance)."""

PIPELINES: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "DiTPipeline": {},
}
"""Pipelines that can be read, with what each is asked to leave out; each is saved as it came."""

KEPT = ("scheduler", "feature_extractor", "image_encoder")
"""Components of a pipeline that are written again as they came; sampling here is DDIM whatever the scheduler."""

NAMES = "id2label"
"""What the classes of DiT are called, in the index of its folder: number -> names, with commas between."""

_DENOISERS = {
    "UNet2DModel": UNet2DModel,
    "UNet2DConditionModel": UNet2DConditionModel,
    "DiTTransformer2DModel": DiTTransformer2DModel,
}


def read_model(cls: type[Model], folder: Path) -> Model:
    """Read a model folder. Raises RecipeError where something is missing or of a kind that is not known."""
    try:
        read = _from_pipeline if (folder / "model_index.json").is_file() else _from_parts
        model = read(cls, folder)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{folder} holds no diffusion model that can be read ({error}). "
            "Type model.pretrained=FOLDER of a run's model/, or of a pipeline of diffusers."
        ) from error
    if not (folder / GUARD).is_file():
        return model
    from unlearn.models.guards.guidance import read_guarded

    return read_guarded(model, folder)  # type: ignore[return-value]


def write_model(model: Diffusion, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a model as the pipeline that it came from, or in its parts; of float type ``dtype``, or its own."""
    parts = model.components()
    if dtype:  # of copies: rounded weights cannot be made whole again
        parts = {n: deepcopy(part).to(dtype) if isinstance(part, nn.Module) else part for n, part in parts.items()}
    if model.pipeline is not None:
        kind = getattr(diffusers, model.pipeline)
        wanted = inspect.signature(kind.__init__).parameters.values()
        lacking = {each.name: None for each in wanted if each.default is each.empty and each.name != "self"}
        known = {each.name: parts[each.name] for each in wanted if each.name in parts}
        pipe = kind(**lacking | PIPELINES[model.pipeline] | known)
        if NAMES in known:  # diffusers reads it and forgets to write it
            pipe.register_to_config(**{NAMES: known[NAMES]})
        pipe.save_pretrained(folder)
    else:
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    (folder / SETTINGS).write_text(json.dumps(asdict(model.settings), indent=2) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> DiffusionSettings | None:
    """Return what ``unlearn.json`` says, None where there is none."""
    if not (folder / SETTINGS).is_file():
        return None
    content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    content["shape"] = tuple(content["shape"])
    content["classes"] = tuple(content["classes"]) if content["classes"] is not None else None
    return DiffusionSettings(**content)


def _from_parts(cls: type[Model], folder: Path) -> Model:
    settings = read_settings(folder)
    if settings is None:
        raise RecipeError(f"{folder} holds no diffusion model: neither {SETTINGS} nor model_index.json is there.")
    place = folder / ("transformer" if (folder / "transformer").is_dir() else "unet")
    kind = json.loads((place / "config.json").read_text(encoding="utf-8"))["_class_name"]
    text = None
    if (folder / "text_encoder").is_dir():
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        text = TextSide([encoder], [AutoTokenizer.from_pretrained(folder / "tokenizer")])
    vae = AutoencoderKL.from_pretrained(folder / "vae") if (folder / "vae").is_dir() else None
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    return cls(_DENOISERS[kind].from_pretrained(place), scheduler, settings, text, vae)


def _from_pipeline(cls: type[Model], folder: Path) -> Model:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = index["_class_name"]
    if kind not in PIPELINES:
        raise RecipeError(f"{folder} holds a {kind}; pipelines that can be read are {', '.join(PIPELINES)}.")
    pipe: Any = getattr(diffusers, kind).from_pretrained(folder, dtype=torch.float32, **PIPELINES[kind])
    text, by_class = None, kind == "DiTPipeline"
    if not by_class:
        encoders = [getattr(pipe, name) for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None)]
        tokenizers = [getattr(pipe, name) for name in ("tokenizer", "tokenizer_2") if getattr(pipe, name, None)]
        if not all(isinstance(encoder, CLIPTextModel | CLIPTextModelWithProjection) for encoder in encoders):
            raise RecipeError(f"{folder}: the text encoders are no CLIP models, and no others can be read.")
        text = TextSide(encoders, tokenizers)
    denoiser = pipe.transformer if by_class else pipe.unet
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    settings = read_settings(folder) or _settings_of(pipe, denoiser, by_class)
    extras = {name: part for name, part in pipe.components.items() if part is not None and name in KEPT}
    extras |= {NAMES: index[NAMES]} if NAMES in index else {}
    return cls(denoiser, scheduler, settings, text, pipe.vae, kind, extras)


def _settings_of(pipe: Any, denoiser: Any, by_class: bool) -> DiffusionSettings:
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    side = denoiser.config.sample_size * factor
    classes = None
    if by_class:
        named = pipe.labels or {}
        names = {int(number): name for name, number in named.items()}
        classes = tuple(names.get(index, str(index)) for index in range(denoiser.config.num_embeds_ada_norm))
    return DiffusionSettings(shape=(3, side, side), classes=classes, steps=50, guidance=7.5 if classes is None else 4.0)
