"""Guards, edits in closed form and keys as parts of a recipe: what a run makes of them and where it keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.toys.diffusion import moved, small_model
from unlearn.config.recipe import load
from unlearn.core.errors import RecipeError
from unlearn.experiment.runner import Result, check, run
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.guards.key import Key

BASE: dict[str, Any] = {
    "model": {"name": "text_unet", "channels": [8, 16], "head_dim": 8, "text_width": 16, "steps": 4},
    "data": {
        "name": "coloured_digits",
        "forget": {"label": "three"},
        "concepts": [{"name": "three", "anchor": "eight", "templates": ["a red {}", "a blue {}"]}],
    },
    "trainer": {"accelerator": "cpu", "tensorboard": False, "threads": 1},
    "evaluate": {"concept_accuracy": {"samples": 8}},
}
KPOP = {"name": "kpop", "tokens": 3, "states": {"items": 4, "steps": 4}}


def carried_out(parts: dict[str, Any], folder: Path) -> tuple[Diffusion, Result]:
    model = moved(small_model("text"), 0.03).float()
    model.settings.steps = 4
    return model, run(load({**BASE, **parts, "output": str(folder / "run")}), model=model)


def changed(model: Diffusion, folder: Path) -> set[str]:
    """Return the names of the weights that differ in the model that the run left."""
    left = Diffusion.from_pretrained(folder / "run" / "model").state_dict()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, left[name])}


@pytest.mark.parametrize("guard", ["negative_guidance", "sld"])
def test_a_guard_alone_leaves_the_weights_and_is_measured(guard: str, tmp_path: Path) -> None:
    model, result = carried_out({"guard": {"name": guard}}, tmp_path)
    assert isinstance(result.model, Diffusion) and result.model.guard is not None
    assert result.model.guard.prompts == ["a red three", "a blue three"]
    assert not changed(model, tmp_path)
    again = Diffusion.from_pretrained(tmp_path / "run" / "model")
    assert again.guard == result.model.guard
    assert {record.subject for record in result.records if record.metric == "accuracy"} == {"target", "unlearned"}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_guard_stands_around_what_an_edit_made(tmp_path: Path) -> None:
    model, result = carried_out({"edit": "uce", "guard": "negative_guidance"}, tmp_path)
    found = changed(model, tmp_path)
    assert found and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in found)
    assert isinstance(result.model, Diffusion) and result.model.guard is not None
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "edited 8 maps" in log and "condition number" in log


def test_a_guard_that_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    parts = {"forget": "esd", "retain": "score_preservation", "optim": {"steps": 2, "batch": 4, "lr": 1e-3}}
    for guard, message in (({"name": "sld", "prompts": ["a purple three"]}, "'purple'"), ("negative_guidance", "is 1")):
        with pytest.raises(RecipeError, match=message):
            model = moved(small_model("text"), 0.03).float()
            model.settings.guidance = 1.0
            run(load({**BASE, **parts, "guard": guard, "output": str(tmp_path / "run")}), model=model)
        assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="'purple'"):
        check(load({**BASE, **parts, "guard": {"name": "sld", "prompts": ["a purple three"]}}))


def test_a_key_is_kept_apart_from_the_model(tmp_path: Path) -> None:
    """In key.safetensors of the run directory, and nowhere below model/; what the run measured is what it opens."""
    parts = {
        "forget": KPOP,
        "retain": {"name": "score_preservation"},
        "scope": {"name": "pattern", "include": ["attn2"]},
        "optim": {"steps": 2, "batch": 4, "lr": 1e-3},
        "evaluate": {"key_recovery": {"samples": 4, "wrong_keys": 2}},
    }
    _, result = carried_out(parts, tmp_path)
    key = Key.load(tmp_path / "run" / "key.safetensors").tokens
    assert key.shape == (3, 16)
    below = [path for path in (tmp_path / "run" / "model").rglob("*") if path.suffix == ".safetensors"]
    assert below and not [path for path in (tmp_path / "run" / "model").rglob("*key*")]
    assert not any(value.shape == key.shape for path in below for value in load_file(path).values())
    figures = {record.about["score"]: record for record in result.records if record.metric == "key_recovery"}
    assert {name: record.n for name, record in figures.items()} == {"right_key": 4, "no_key": 4, "wrong_key": 8}
    assert {record.subject for record in figures.values()} == {"unlearned"}
    assert figures["right_key"].direction == "higher" and figures["no_key"].direction == "lower"


@pytest.mark.parametrize(
    "parts",
    [{"guard": "sld"}, {"edit": "rece"}, {"edit": "uce", "guard": "sld"}, {"forget": KPOP, "guard": "sld"}],
    ids=["guard", "edit", "both", "around_steps"],
)
def test_check_applies_them_to_an_untrained_model(parts: dict[str, Any]) -> None:
    said = check(load({**BASE, **parts, "optim": {"steps": 2, "batch": 2}}))
    assert "The recipe is sound." in said
    assert ("guard     SafeLatentDiffusion" in said) == ("guard" in parts)
    assert ("edit      RECE" in said) == (parts.get("edit") == "rece")


def test_recipes_with_a_guard() -> None:
    recipe = load({**BASE, "guard": {"name": "sld", "level": "max", "warmup": 2}})
    assert recipe.guard is not None and load(recipe.tree).hash == recipe.hash
    assert recipe.tree["guard"]["level"] == "max" and "guard" not in load({**BASE, "edit": "uce"}).tree
    assert load({**BASE, "guard": {"name": "sld", "level": "weak"}}).hash != recipe.hash
    nested = load({**BASE, "edit": {"name": "rece", "rounds": 2, "uce": {"lam": 0.3}}})
    assert nested.edit.uce.lam == 0.3 and nested.edit.uce.tokens == "all"  # type: ignore[union-attr]
    for parts, message in (
        ({}, "guard=NAME alone"),
        ({"forget": KPOP, "edit": "uce"}, "both a forget and an edit part"),
        ({"guard": "sls"}, "there is no guard 'sls'"),
        ({"guard": {"name": "sld", "scale": -1}}, "guard.scale is -1"),
    ):
        with pytest.raises(RecipeError, match=message):
            load({**BASE, **parts})


def test_a_guard_asks_for_a_denoiser() -> None:
    glow = {"model": "glow", "data": "digits", "evaluate": None, "guard": "sld"}
    with pytest.raises(RecipeError, match="guard asks for the capability 'denoises', which Flow lacks"):
        check(load({**BASE, **glow}))
