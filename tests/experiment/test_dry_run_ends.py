"""Where ``--check`` ends as the run would, and how little it does for large models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.language_files import SMALL
from unlearn.config.recipe import load
from unlearn.experiment import dry_run, trial
from unlearn.experiment.run_dir import RunDir
from unlearn.experiment.runner import check
from unlearn.models.diffusion import wrapper
from unlearn.run import main

FILE = SMALL.partition("=")[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own, with a cache that holds nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path


# --------------------------------------------------------------------------------------------- as the run would end

STILL = '''
"""Objectives whose gradient is 0: at every step, at the first one alone, on few items alone."""
from dataclasses import dataclass
from unlearn.objectives.base import Objective, Values

SIZES = []

def zero(model, batch, context, moves):
    SIZES.append(len(batch["id"]))
    return Values(model.training_loss(batch, context.randomness) * float(moves))

@dataclass(frozen=True, kw_only=True)
class Always(Objective):
    def __call__(self, model, batch, context):
        return zero(model, batch, context, False)

@dataclass(frozen=True, kw_only=True)
class First(Objective):
    def __call__(self, model, batch, context):
        return zero(model, batch, context, context.step > 0)

@dataclass(frozen=True, kw_only=True)
class Few(Objective):
    def __call__(self, model, batch, context):
        return zero(model, batch, context, len(batch["id"]) > 2)
'''


@pytest.mark.parametrize(
    ("name", "settings", "code", "sizes"),
    [
        ("Always", [], 2, [2, 2, 2, 4, 4, 4]),
        ("First", [], 0, [2, 2]),
        ("Few", [], 0, [2, 2, 2, 4]),
        ("Always", ["optim.steps=1"], 0, [2]),  # one step is no sign: the run takes it
        ("Always", ["forget.weight=0"], 0, [2]),  # a control
    ],
)
def test_a_gradient_of_0_ends_it_as_it_ends_the_run(
    name: str,
    settings: list[str],
    code: int,
    sizes: list[int],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Steps go on where the first has no gradient, and as many items are taken as the run takes."""
    module = here.name  # another one for each test: classes are known by their module's name
    (here / f"{module}.py").write_text(STILL)
    monkeypatch.setattr(dry_run, "ITEMS", (2, 2))
    given = [SMALL, f"forget={{name: {module}:{name}}}", "optim.batch=4", *settings]
    assert main([*given, "--check"]) == code
    said = capsys.readouterr()
    assert ("is exactly 0 in the first 3 steps" in said.err and "On an untrained model" in said.err) == (code == 2)
    assert ("The recipe is sound." in said.out) == (code == 0)
    assert sizes == sys.modules[module].SIZES


def test_an_output_that_the_run_refuses_is_refused_in_its_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("finished", "empty"):
        (here / name).mkdir()
    (here / "finished" / "run.json").write_text("{}")
    (here / "file").write_text("")
    for name in ("finished", "file", "file/below"):
        said = []
        for flags in ([], ["--check"]):
            assert main([SMALL, f"output={name}", *flags]) == 2
            said.append(capsys.readouterr().err)
        assert said[0] == said[1] and f"output={name}" in said[0]
    assert main([SMALL, "output=empty", "--check"]) == 0 and list((here / "empty").iterdir()) == []
    assert main([SMALL, "output=new/below", "--check"]) == 0 and not (here / "new").exists()
    assert main([SMALL, "resume=finished", "--check"]) == 2
    assert "a run brings its own recipe" in capsys.readouterr().err


def test_an_unfinished_run_is_no_obstacle_to_its_resume(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load(FILE, ["output=begun"])
    begun = RunDir(here / "begun")
    begun.folder.mkdir()
    begun.begin(recipe, ["python", "-m", "unlearn.run", SMALL, "output=begun"], in_memory=False)
    assert main([SMALL, "output=begun", "--check"]) == 2
    assert main([SMALL, "output=begun", "resume=auto", "--check"]) == 0


# ------------------------------------------------------------------------------------------------------- large models


def test_a_step_of_a_large_model_is_taken_on_fewer_items() -> None:
    """By its number of weights; time is not measured."""
    sizes = {10: 16, 4_000_000: 8, 16_000_000: 2, 10**9: 2}
    for weights, items in sizes.items():
        assert dry_run.items_of(torch.nn.Linear(weights, 1, bias=False, device="meta")) == items


@pytest.mark.parametrize(
    ("name", "large", "passes"), [("sfd_digits", 1e6, 120), ("salun_digits", 1e6, 140), ("salun_digits", 1e3, 90)]
)
def test_the_slowest_kinds_send_few_images_through_their_network(
    name: str, large: float, passes: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted on an untrained model of another size than ships: what stands for another model is sampled once."""
    found: list[int] = []
    call = wrapper.call_denoiser

    def counted(denoiser: Any, x: torch.Tensor, *rest: Any, **more: Any) -> Any:
        found.append(len(x))
        return call(denoiser, x, *rest, **more)

    monkeypatch.setattr(wrapper, "call_denoiser", counted)
    monkeypatch.setattr(dry_run, "ITEMS", (2, 2))
    monkeypatch.setattr(trial, "LARGE", large)
    said = check(load(f"diffusion/{name}", ["model.channels=[8,16]", "model.head_dim=4"]))
    assert "on an untrained model" in said and said.endswith("The recipe is sound.")
    assert 0 < sum(found) <= passes
