"""A target that is distilled from a teacher, and networks beside the model, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unlearn
from tests.toys import ROOT
from tests.toys.command import kill_after_a_checkpoint, unlearn_in_a_process
from tests.toys.diffusion import small_model
from unlearn.config.recipe import load
from unlearn.core.errors import RecipeError
from unlearn.delta import main as delta
from unlearn.run import main

SMALL = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small_sfd.yaml'}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of trained models, filled by one run, which is in it too."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(folder))
        patch.chdir(folder)
        assert main([SMALL, "output=first"]) == 0
    return folder


@pytest.fixture
def here(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "unlearn.json").read_text())
    return found


def trained(cache: Path, run: Path | None = None) -> dict[str, Path]:
    """Return the folders of the models that a run works on: of its target, and of the target's teacher."""
    works_on = json.loads(((run or cache / "first") / "run.json").read_text())["works_on"]
    return {name: cache / "models" / works_on[name] for name in ("teacher", "target model")}


def last(run: Path) -> list[dict[str, torch.Tensor]]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return state["parameters"]  # type: ignore[no-any-return]


def gap(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> float:
    return max(float((a[n] - b[n]).detach().abs().max()) for a, b in zip(first, second, strict=True) for n in a)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_target_is_distilled_once_and_the_run_goes_on_from_it(cache: Path, here: Path) -> None:
    found = trained(cache)
    assert {path.parent for path in (cache / "models").glob("*/trained.json")} == set(found.values())
    assert settings(found["teacher"])["one_step"] is None and settings(found["target model"])["one_step"] == 440
    assert settings(cache / "first" / "model")["one_step"] == 440
    teacher, start, end = (weights(f) for f in (found["teacher"], found["target model"], cache / "first" / "model"))
    assert not same(teacher, start) and not same(start, end)
    written = {name: folder.stat().st_mtime_ns for name, folder in found.items()}
    assert main([SMALL, "data.forget.label=5", "data.concepts=[]", "forget.override=random", "output=other"]) == 0
    assert {name: path.stat().st_mtime_ns for name, path in trained(cache, here / "other").items()} == written


def test_what_shapes_the_distillation_makes_another_model(cache: Path, here: Path) -> None:
    assert main([SMALL, "distil.alpha=1.0", "optim.steps=1", "output=other"]) == 0
    first, other = trained(cache), trained(cache, here / "other")
    assert first["teacher"] == other["teacher"] and first["target model"] != other["target model"]


def test_a_generator_may_be_given(cache: Path, here: Path) -> None:
    """It is taken as it is; the run that begins with the cached one is the same."""
    given = trained(cache)["target model"]
    assert main([SMALL, f"distil.pretrained={given}", "output=given"]) == 0
    assert same(weights(here / "given" / "model"), weights(cache / "first" / "model"))
    assert main([SMALL, "distil.pretrained=nowhere", "output=none"]) == 2


def test_without_a_distillation_the_target_itself_begins_to_draw_at_once(here: Path) -> None:
    """The first step's loss is of the target's own weights, and the target still draws in steps."""
    assert main([SMALL, "distil=null", "output=plain"]) == 0
    assert settings(here / "plain" / "model")["one_step"] == 440


def test_two_ranks_are_one_rank(cache: Path, here: Path) -> None:
    """Both networks, in double precision; 9 and 5 items a step, shared by two."""
    precise = [SMALL, "trainer.precision=64-true"]
    assert main([*precise, "output=one"]) == 0
    assert main([*precise, "output=other", "seed=1"]) == 0  # the control
    done = unlearn_in_a_process(*precise, "output=two", "trainer.devices=2", cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    one, two, other = (last(here / name) for name in ("one", "two", "other"))
    assert len(one) == 2 and next(iter(one[0].values())).dtype == torch.float64
    assert gap(one, two) < 1e-6 < 1e-4 < gap(one, other)


def test_a_killed_run_ends_in_the_same_weights(cache: Path, here: Path) -> None:
    long = [SMALL, "optim.steps=30"]
    assert main([*long, "output=whole"]) == 0
    folder = here / "killed"
    folder.mkdir()
    assert 0 < kill_after_a_checkpoint(long, folder, cache, 0.2) < 30
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*long, "resume=auto"]) == 0
    run = next(folder.glob("runs/**/report.html")).parent
    assert same(weights(run / "model"), weights(here / "whole" / "model"))
    assert gap(last(run), last(here / "whole")) == 0


def test_check_builds_both_networks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([SMALL, "--check"]) == 0
    assert "The recipe is sound" in capsys.readouterr().out


def test_what_does_not_go_together_is_refused(here: Path) -> None:
    small = ROOT / "tests" / "toys" / "recipes" / "small_sfd.yaml"
    with pytest.raises(RecipeError, match="distil makes the target from a teacher"):
        unlearn.unlearn(small_model("class").float(), recipe=small)
    assert main([SMALL, "corrupt.seed=1"]) == 2
    assert main([SMALL, "distil=training_los"]) == 2
    assert main([SMALL, "distil.steps=3"]) == 2
    tree = load(small).tree["distil"]
    assert tree["name"] == "sfd" and tree["optim"]["steps"] == 4 and tree["pretrained"] is None
    assert load({"base": str(small), "distil": None}).distil is None


def test_a_delta_does_not_leave_out_that_a_model_became_a_generator(
    cache: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trained(cache)
    given = ["save", str(cache / "first"), str(here / "change.safetensors"), "--base"]
    assert delta([*given, str(found["teacher"])]) == 2
    assert "its target has {'one_step': None}, it has {'one_step': 440}" in capsys.readouterr().err
    assert not (here / "change.safetensors").exists()
    assert delta([*given, str(found["target model"])]) == 0
