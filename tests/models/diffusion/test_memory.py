"""Models built from their descriptions alone, and how much one pass keeps for the backward pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, StableDiffusionXLPipeline
from torch.autograd.graph import saved_tensors_hooks

from tests.objectives.edits.test_uce import xl_model
from tests.toys.diffusion import Conditioning, small_model, small_splits
from tests.toys.pipelines import small_pipeline, small_vae
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.config import StableDiffusion
from unlearn.models.diffusion.memory import kept_numbers
from unlearn.models.diffusion.wrapper import Diffusion


def saved(kind: str, folder: Path) -> Path:
    """A model in each layout that is read, with random weights."""
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    if kind == "parts":
        small_model("text").float().save_pretrained(folder)
    elif kind == "stable_diffusion":
        small_pipeline().save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]  # as 1.5 has it; it is not read
        (folder / "model_index.json").write_text(json.dumps(index))
    elif kind == "xl":
        model: Any = xl_model().float()
        names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        text = dict(zip(names, (*model.text.encoders, *model.text.tokenizers), strict=True))
        pipe = StableDiffusionXLPipeline(
            vae=small_vae(3), unet=model.denoiser, scheduler=scheduler, add_watermarker=False, **text
        )
        pipe.save_pretrained(folder)
    else:
        DiTPipeline(small_model("dit").float().denoiser, small_vae(1), scheduler).save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        index["id2label"] = {"0": "nought, zero", "1": "one"}  # as the published ones have it
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("kind", ["parts", "stable_diffusion", "xl", "dit"])
def test_a_model_without_weights_has_the_shapes_of_the_one_with_them(kind: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path / "model")
    empty, full = StableDiffusion().empty(str(folder)), Diffusion.from_pretrained(folder)
    assert {name: value.shape for name, value in empty.named_parameters()} == {
        name: value.shape for name, value in full.named_parameters()
    }
    assert all(value.is_meta for value in empty.parameters()) and empty.settings == full.settings
    assert empty.pipeline == full.pipeline and kept_numbers(empty) > 0
    if full.text is not None:
        assert torch.equal(empty.prompts(["a red three"]).tokens, full.prompts(["a red three"]).tokens)
        for file in folder.rglob("*.safetensors"):
            file.unlink()
        data = small_splits("text")["forget"].dataset.base  # type: ignore[attr-defined]
        read: Any = StableDiffusion(pretrained=str(folder)).read(data)
        assert torch.equal(read.batch(torch.arange(2))["tokens"], full.prompts(read.captions[:2]).tokens)


@pytest.mark.parametrize("told", ["text", "class", "dit"])
def test_what_a_pass_keeps_is_what_it_keeps_of_a_real_model(told: Conditioning, tmp_path: Path) -> None:
    """Counted on the real model, where a fused attention keeps one number a row beside what is counted."""
    model = small_model(told).float()
    model.save_pretrained(tmp_path)
    empty = StableDiffusion().empty(str(tmp_path))
    parameters = {value.data_ptr() for value in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in parameters and value.is_floating_point():
            kept.setdefault(value.data_ptr(), value)
        return value

    x, t = torch.zeros(1, *model.latent_shape, requires_grad=True), torch.zeros(1, dtype=torch.int64)
    condition = Condition(states=torch.zeros(1, 8, 16)) if told == "text" else Condition(classes=t)
    with saved_tensors_hooks(keep, lambda value: value):
        model.raw(x, t, condition)
    real = sum(value.numel() for value in kept.values())
    assert kept_numbers(empty) == pytest.approx(real, rel=0.05)
