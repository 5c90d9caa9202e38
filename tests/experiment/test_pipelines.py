"""Pipelines of diffusers through the command line: every diffusion method on every layout takes two steps, and what it
leaves loads and samples in diffusers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from tests.toys.pipelines import DENOISER, LAYOUTS, LORA, METHODS, PROMPTS, WORDS, images, recipe, sampled
from unlearn.config.compatibility import capabilities_of
from unlearn.config.registry import COMPONENTS, names, resolve
from unlearn.core.errors import RecipeError
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.pipeline import ZEROS
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.run import main

SIZE = 16
BY_TEXT = ("kpop", "uce", "rece")
"""Methods of cross-attention, which a model that is told classes does not have."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pipelines")
    return {
        "images": images(place / "images", SIZE),
        **{layout: build(place / layout) for layout, build in LAYOUTS.items()},
    }


def settings(method: str, layout: str) -> dict[str, Any]:
    parts = dict(METHODS[method])
    if "forget" in parts:
        parts.setdefault("scope", DENOISER)
        if layout == "dit" and parts["scope"] == WORDS:
            parts["scope"] = DENOISER
    parts["optim"] = {"name": "adam", "lr": 1e-3, "steps": 2, "batch": 2, **parts.get("optim", {})}
    return parts


def run(folders: Mapping[str, Path], layout: str, method: str, place: Path) -> tuple[int, Path]:
    templates = ["{}"] if layout == "dit" else PROMPTS  # a class is a name
    parts = settings(method, layout)
    file = recipe(place / "recipe.yaml", folders[layout], folders["images"], SIZE, templates, **parts)
    return main([f"recipe={file}", f"output={place / 'run'}"]), place / "run"


def test_every_method_is_here() -> None:
    """Language models have edits of their own; score preservation and the others below stand beside a method."""
    beside = {"score_preservation", "training_loss", "weight_anchor", "ewc"}
    family = {name for name, path in COMPONENTS["objective"].items() if ".diffusion." in path or ".common." in path}
    assert family - {"nll"} - beside == {name for name, parts in METHODS.items() if "forget" in parts}
    edits = {name for name in names("edit") if "continues" not in capabilities_of(resolve("edit", name))}
    assert edits | set(names("guard")) == {name for name, parts in METHODS.items() if "forget" not in parts}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:diffusers")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_two_steps_of_every_method(
    method: str, layout: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pipeline that is left has the target's components, one of them moved, and draws."""
    code, place = run(folders, layout, method, tmp_path)
    if layout == "dit" and method in BY_TEXT:
        assert code == 2 and "forget=esd" in capsys.readouterr().err
        return
    assert code == 0, capsys.readouterr().err
    moved = changed(folders[layout], place / "model")
    assert {name.split("/")[0] for name in moved} == parts_of(method, layout)
    pipe, image = sampled(place / "model")
    assert image.shape == (SIZE, SIZE, 3) and np.isfinite(image).all() and image.std() > 0
    index = json.loads((folders[layout] / "model_index.json").read_text())
    found = json.loads((place / "model" / "model_index.json").read_text())
    assert {key: value for key, value in found.items() if value} == {key: v for key, v in index.items() if v}
    assert type(pipe).__name__ == index["_class_name"]


@torch.no_grad()
@pytest.mark.parametrize("zeros", [True, False])
def test_the_null_of_xl_is_that_of_the_pipeline(zeros: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    """Zeros, or the empty prompt in the states of the text encoders: both before and after these have moved."""
    shutil.copytree(folders["stable_diffusion_xl"], tmp_path / "xl")
    index = json.loads((tmp_path / "xl" / "model_index.json").read_text())
    assert index[ZEROS] is True
    (tmp_path / "xl" / "model_index.json").write_text(json.dumps({**index, ZEROS: zeros}))
    assert Diffusion.from_pretrained(tmp_path / "xl", weights=False).pipeline.zeros is zeros
    model = Diffusion.from_pretrained(tmp_path / "xl")
    model.save_pretrained(tmp_path / "same")
    for parameter in model.text.parameters():  # type: ignore[union-attr]
        parameter += 0.05
    model.save_pretrained(tmp_path / "moved")
    for place in ("same", "moved"):
        assert json.loads((tmp_path / place / "model_index.json").read_text())[ZEROS] is zeros
        pipe: Any = DiffusionPipeline.from_pretrained(tmp_path / place)
        states, empty, pooled, empty_pooled = pipe.encode_prompt("a cat", do_classifier_free_guidance=True)
        model = Diffusion.from_pretrained(tmp_path / place)
        told, null = model.encode(model.prompts(["a cat"])), model.null(1)
        mixed = model.encode(Condition.cat([null, model.prompts(["a cat"]), null]))
        for found, pair in ((told, (states, pooled)), (model.encode(null), (empty, empty_pooled))):
            torch.testing.assert_close((found.states, found.pooled), pair)
        torch.testing.assert_close((mixed.states, mixed.pooled), (cat(empty, states), cat(empty_pooled, pooled)))
        assert (not empty.any()) == (not empty_pooled.any()) == zeros
        assert model.encode(model.prompts([""])).states.any()  # type: ignore[union-attr]
        x, t = torch.randn(1, *model.latent_shape), torch.tensor([500])
        times = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=x.dtype)
        eps = [
            pipe.unet(x, t, each, added_cond_kwargs={"text_embeds": vector, "time_ids": times}).sample
            for each, vector in ((empty, empty_pooled), (states, pooled))
        ]
        torch.testing.assert_close(model.guided(x, t, model.prompts(["a cat"]), 3.0), eps[0] + 3 * (eps[1] - eps[0]))


def cat(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    return torch.cat([outer, inner, outer])


@pytest.mark.parametrize(
    ("layout", "part"),
    [("stable_diffusion", "vae"), ("stable_diffusion_xl", "text_encoder_2"), ("dit", "scheduler")],
)
def test_a_pipeline_that_lacks_a_part_is_refused(
    layout: str, part: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[layout], tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / part)
    for weights in (True, False):
        with pytest.raises(RecipeError, match=rf"pipe lacks {part}/, which a \w+Pipeline needs\. [^\n]*$"):
            Diffusion.from_pretrained(tmp_path / "pipe", weights)


def parts_of(method: str, layout: str) -> set[str]:
    """Return the folders whose weights a method moves; never the autoencoder's."""
    scope = METHODS[method].get("scope")
    if "guard" in METHODS[method]:
        return set()
    if layout == "dit":
        return {"transformer"}
    text = {"text_encoder", "text_encoder_2"} if layout == "stable_diffusion_xl" else {"text_encoder"}
    if scope == WORDS:
        return text
    return {"unet", *(text if scope in ("all", LORA) or method == "task_vector" else ())}


def changed(before: Path, after: Path) -> set[str]:
    """Return the places of the weights that differ, ``component/name``; none may be lost, new, or no number."""
    found = set()
    files = sorted(file.relative_to(before) for file in before.rglob("*.safetensors"))
    assert files and files == sorted(file.relative_to(after) for file in after.rglob("*.safetensors"))
    for file in files:
        first, second = load_file(before / file), load_file(after / file)
        assert first.keys() == second.keys() and all(value.isfinite().all() for value in second.values())
        found |= {f"{file.parts[0]}/{name}" for name, value in first.items() if not torch.equal(value, second[name])}
    return found
