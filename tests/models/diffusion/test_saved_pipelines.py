"""Pipelines are saved as they came: every component, every part in its own type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.models.diffusion.test_folders_of_strangers import KEPT, TEXT, UNET, VAE, changed, not_a_number, scheduler
from tests.toys.command import unlearn
from tests.toys.pipelines import images, recipe, stable_diffusion
from unlearn.models.diffusion.wrapper import Diffusion


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("plain") / "pipeline")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "pipeline"))


def with_extras(folder: Path) -> dict[str, bytes]:
    """Give a pipeline a safety checker, a feature extractor and settings of its own; return the files."""
    written = {f"{KEPT}/config.json": b'{"a": 1}', "feature_extractor/preprocessor_config.json": b'{"size": 224}'}
    for name, content in written.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(content)
    save_file({"concepts": torch.ones(3).half()}, folder / KEPT / "model.safetensors")
    changed(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
        watermark={"strength": 0.3},
    )
    return {**written, f"{KEPT}/model.safetensors": (folder / KEPT / "model.safetensors").read_bytes()}


def dtypes(file: Path) -> set[str]:
    with safe_open(file, "pt") as content:
        return {content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118, it is no mapping


def half(folder: Path, variant: str | None = None) -> None:
    """Store the denoiser and the text encoder in half precision; the autoencoder stays as it is."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    for name in ("unet", "text_encoder"):
        getattr(pipe, name).half().save_pretrained(folder / name, variant=variant)
        if variant:
            (folder / f"{UNET if name == 'unet' else TEXT}.safetensors").unlink()


def test_every_component_comes_back_and_every_part_has_its_type(folder: Path, tmp_path: Path) -> None:
    """Even where the folder that the model came from is gone when it is saved."""
    half(folder)
    extras = with_extras(folder)
    index = json.loads((folder / "model_index.json").read_text())
    own = {
        name: (folder / name).read_bytes() for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json")
    }
    model = Diffusion.from_pretrained(folder)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    shutil.rmtree(folder)
    with torch.no_grad():
        model.denoiser.conv_in.weight += 1e-6  # less than half precision holds
    model.round_as_saved()
    saved = tmp_path / "saved"
    saved.mkdir()
    model.save_pretrained(saved)
    assert {name: (saved / name).read_bytes() for name in (*extras, *own)} == {**extras, **own}
    assert json.loads((saved / "model_index.json").read_text()) == index
    found = {part: dtypes(saved / f"{part}.safetensors") for part in (UNET, TEXT, VAE)}
    assert found == {UNET: {"F16"}, TEXT: {"F16"}, VAE: {"F32"}}
    again = Diffusion.from_pretrained(saved).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    shutil.rmtree(saved)
    saved.mkdir()
    model.save_pretrained(saved, torch.float32)
    assert dtypes(saved / f"{UNET}.safetensors") == {"F32"}


def test_every_tensor_of_a_part_has_the_type_that_it_came_in(folder: Path, tmp_path: Path) -> None:
    """As of a denoiser in half precision whose norms are in single precision."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder)
    for module in pipe.unet.half().modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.float()
    pipe.unet.save_pretrained(folder / "unet")
    wanted = {name: value.dtype for name, value in load_file(folder / f"{UNET}.safetensors").items()}
    assert set(wanted.values()) == {torch.float16, torch.float32}
    model = Diffusion.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter += 1e-6
    model.round_as_saved()
    model.save_pretrained(tmp_path / "saved")
    assert {n: v.dtype for n, v in load_file(tmp_path / "saved" / f"{UNET}.safetensors").items()} == wanted
    assert dtypes(tmp_path / "saved" / f"{TEXT}.safetensors") == {"F32"}
    again = Diffusion.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_a_variant_is_read_and_written_without_one(folder: Path, tmp_path: Path) -> None:
    with_extras(folder)
    half(folder, "fp16")
    (folder / KEPT / "model.safetensors").rename(folder / KEPT / "model.fp16.safetensors")
    model = Diffusion.from_pretrained(folder)
    (tmp_path / "saved").mkdir()
    model.save_pretrained(tmp_path / "saved")
    assert dtypes(tmp_path / "saved" / f"{UNET}.safetensors") == {"F16"}
    assert (tmp_path / "saved" / KEPT / "model.safetensors").is_file()
    assert not list((tmp_path / "saved").rglob("*fp16*"))


def test_a_run_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    """And a run of a pipeline in half precision leaves one, with its safety checker."""
    data = images(tmp_path / "images", 16)
    half(folder)
    extras = with_extras(folder)
    file = recipe(tmp_path / "recipe.yaml", folder, data, 16, forget="gradient_ascent", retain="training_loss")
    done = unlearn(f"recipe={file}", "output=run", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert dtypes(tmp_path / "run" / "model" / f"{UNET}.safetensors") == {"F16"}
    assert {name: (tmp_path / "run" / "model" / name).read_bytes() for name in extras} == extras
    name = not_a_number(folder / f"{UNET}.safetensors")
    failed = unlearn(f"recipe={file}", "output=other", cwd=tmp_path, cache=tmp_path)
    assert failed.returncode == 2 and name in failed.stderr and not (tmp_path / "other").exists()
    scheduler(folder, "EDMEulerScheduler")
    checked = unlearn(f"recipe={file}", "--check", cwd=tmp_path, cache=tmp_path)
    assert checked.returncode == 2 and "EDMEulerScheduler" in checked.stderr
