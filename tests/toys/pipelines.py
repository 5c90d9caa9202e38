"""Folders of diffusers pipelines with random weights, built from configurations, and images and a recipe for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.toys.diffusion import moved, small_model
from unlearn.core.randomness import Randomness
from unlearn.models.diffusion.config import TextUNet

LABELS = ("cat", "dog", "house")
"""Of the images: cats are forgotten, dogs take their place, houses stay with the dogs."""

CLASSES = {number: LABELS[number] if number < len(LABELS) else f"thing {number}" for number in range(1000)}
"""Of DiT, whose pipeline takes 1000 for no class."""

PROMPTS = ("{}", "a photo of a {}")
TOKENIZER = TextUNet(words=("a", "photo", "of", *LABELS), length=77)
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}

QUICK = {"states": {"items": 2, "steps": 2}}
"""Few trajectories or drawn items, of few steps."""

KEEP = {"name": "score_preservation"}
CROSS = {"name": "kind", "kinds": ["cross_attention"]}
DENOISER = {"name": "kind", "kinds": ["denoiser"]}
WORDS = {"name": "kind", "kinds": ["text_encoder_mlp", "text_encoder_last_attention"]}
LORA = {"name": "lora", "rank": 2}
SALIENT = {"name": "saliency", "include": ["^denoiser"], "loss": "training"}

METHODS: dict[str, dict[str, Any]] = {
    "esd": {"forget": {"name": "esd", **QUICK}, "retain": KEEP},
    "sdd": {"forget": {"name": "sdd", **QUICK}, "optim": {"ema": 0.9}},
    "concept_ablation": {"forget": {"name": "concept_ablation", **QUICK}},
    "random_label": {"forget": "random_label", "retain": "training_loss", "scope": SALIENT},
    "denoising_ascent": {"forget": {"name": "denoising_ascent", "states": {"images": 2}}, "scope": WORDS},
    "doco": {"forget": {"name": "doco", **QUICK, "width": 8, "warmup": 1}, "retain": KEEP, "combine": "one_sided"},
    "kpop": {"forget": {"name": "kpop", **QUICK, "tokens": 2}, "scope": CROSS},
    "sfd": {"forget": {"name": "sfd", "override": "anchor"}, "retain": "sfd", "scope": LORA},
    "gradient_ascent": {
        "forget": "gradient_ascent",
        "retain": {"training_loss": {}, "weight_anchor": {"weight": 0.1}, "ewc": {"weight": 0.01, "items": 2}},
        "scope": "all",
    },
    "uce": {"edit": "uce"},
    "rece": {"edit": "rece"},
    "task_vector": {"edit": {"name": "task_vector", "optim": {"steps": 2, "batch": 2}}},
    "negative_guidance": {"guard": "negative_guidance"},
    "sld": {"guard": {"name": "sld", "level": "max"}},
}
"""Every way to forget, with what it asks for beside it."""


def small_pipeline() -> StableDiffusionPipeline:
    """Return one around the small text-conditional model of the digits; its images are of 3 x 16 x 16."""
    model = moved(small_model("text")).float()
    return StableDiffusionPipeline(
        vae=small_vae(channels=3),
        text_encoder=model.text.encoders[0],
        tokenizer=model.text.tokenizers[0],
        unet=model.denoiser,
        scheduler=DDIMScheduler(
            clip_sample=False, steps_offset=1, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def small_vae(channels: int) -> AutoencoderKL:
    """Return an autoencoder of two levels whose latents have so many channels."""
    with _seeded():
        return AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            in_channels=3,
            out_channels=3,
            latent_channels=channels,
            norm_num_groups=4,
        ).eval()


def stable_diffusion(folder: Path, small: bool = True) -> Path:
    """Write a Stable Diffusion 1.5 pipeline for images of 16 x 16, or of its real shape for 128 x 128 where not small.

    The real shape has 1.07 billion weights, 4.3 GB in single precision.
    """
    with _seeded():
        if small:
            unet = UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(8, 16),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=16,
                attention_head_dim=2,
                norm_num_groups=4,
            )
            encoder = CLIPTextModel(_clip(16, layers=2))
        else:
            unet = UNet2DConditionModel(
                sample_size=16, cross_attention_dim=768
            )  # the others' defaults are those of 1.5
            encoder = CLIPTextModel(
                _clip(768, layers=12, vocab_size=49_408, num_attention_heads=12, hidden_act="quick_gelu")
            )
        pipe = StableDiffusionPipeline(
            vae=_autoencoder(small),
            text_encoder=encoder,
            tokenizer=TOKENIZER.tokenizer(),
            unet=unet,
            scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **NOISE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _written(pipe, folder)


def stable_diffusion_xl(folder: Path) -> Path:
    """Write a small pipeline of the layout of Stable Diffusion XL: two text encoders, a pooled vector, added times."""
    with _seeded():
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=16 + 8,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
            norm_num_groups=4,
        )
        pipe = StableDiffusionXLPipeline(
            vae=_autoencoder(),
            text_encoder=CLIPTextModel(_clip(16, layers=2)),
            text_encoder_2=CLIPTextModelWithProjection(_clip(8, layers=2)),
            tokenizer=TOKENIZER.tokenizer(),
            tokenizer_2=TOKENIZER.tokenizer(),
            unet=unet,
            scheduler=EulerDiscreteScheduler(**NOISE),
            add_watermarker=False,
        )
    return _written(pipe, folder)


def dit(folder: Path) -> Path:
    """Write a small DiT pipeline of a thousand classes, which predicts a variance too."""
    with _seeded():
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            patch_size=2,
        )
        _away_from_zero(transformer)
        pipe = DiTPipeline(transformer=transformer, vae=_autoencoder(), scheduler=DDIMScheduler(clip_sample=False))
    _written(pipe, folder)
    index = folder / "model_index.json"  # where the published folders name their classes
    content = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**content, "id2label": CLASSES}), encoding="utf-8")
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "dit": dit,
}
"""Small folders."""


def images(folder: Path, size: int, each: int = 5) -> Path:
    """Write images of noise, ``each`` a label, whose captions are their labels; every fifth is a test item."""
    for number, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for index in range(each):
            noise = Randomness(0, "image").integers(torch.tensor([number * each + index]), 256, (size, size, 3))[0]
            Image.fromarray(noise.numpy().astype(np.uint8)).save(folder / label / f"{index}.png")
    return folder


def recipe(file: Path, pipeline: Path, data: Path, size: int, templates: Sequence[str] = PROMPTS, **parts: Any) -> Path:
    """Write a recipe that has a pipeline forget cats in two steps; ``parts`` name the method."""
    content = {
        "model": {"name": "stable_diffusion", "pretrained": str(pipeline), "steps": 2},
        "data": {
            "name": "image_folder",
            "path": str(data),
            "size": size,
            "forget": {"label": ["cat"]},
            "concepts": [{"name": "cat", "anchor": "dog", "templates": list(templates)}],
        },
        "optim": {"name": "sgd", "lr": 1e-3, "steps": 2, "batch": 2},
        "trainer": {"accelerator": "cpu", "threads": 1, "tensorboard": False},
        "evaluate": {"cost": {}},
        **parts,
    }
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return file


@torch.no_grad()
def sampled(folder: Path, guidance: float = 2.0) -> tuple[DiffusionPipeline, np.ndarray]:
    """Load a folder by diffusers alone; return the pipeline and one image of it, (H, W, 3) in [0, 1], in two steps."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    asked = {"class_labels": [0]} if isinstance(pipe, DiTPipeline) else {"prompt": "a photo of a cat"}
    generator = torch.Generator().manual_seed(0)
    found = pipe(**asked, guidance_scale=guidance, num_inference_steps=2, generator=generator, output_type="np")
    return pipe, found.images[0]


def _clip(width: int, layers: int, **changed: Any) -> CLIPTextConfig:
    sizes = {
        "vocab_size": 3 + len(TOKENIZER.words),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENIZER.length,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return CLIPTextConfig(**{**sizes, **changed})


def _autoencoder(small: bool = True) -> AutoencoderKL:
    widths = (4, 8) if small else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1 if small else 2,
        latent_channels=4,
        norm_num_groups=4 if small else 32,
        sample_size=16 if small else 128,
    )


@torch.no_grad()
def _away_from_zero(network: torch.nn.Module) -> None:
    """DiT begins with gates of 0, through which no gradient comes; a trained one has none."""
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn_like(parameter)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _written(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder
