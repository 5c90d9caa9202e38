"""What a finished run has lost is made again by what the message says, and a spoilt checkpoint makes no model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import ROOT
from tests.toys.command import evaluate, unlearn

SMALL = [
    f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}", "optim.steps=2", "optim.batch=4",
    "pretrain.optim.steps=2", "pretrain.retrained=false", "evaluate.bits_per_dim=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for settings in (["seed=[0,1]", "output=both"], ["output=one"], ["optim.ema=0.5", "output=averaged"]):
        done = unlearn(*SMALL, *settings, cwd=folder, cache=cache)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "here"))


def figures(run: Path) -> list[tuple[Any, ...]]:
    """Return what does not depend on the clock."""
    records = json.loads((run / "metrics.json").read_text())["records"]
    return [(r["metric"], r["n"]) for r in records]


LOST = ["both/seed-1", "both/seed-1/model", "both/seed-1/metrics.json", "both/metrics.json", "one/model",
        "one/metrics.json"]  # fmt: skip


@pytest.mark.parametrize("lost", LOST)
def test_what_a_finished_run_has_lost_is_made_again(lost: str, here: Path, cache: Path) -> None:
    """Measuring says resume, which said that the run is finished."""
    run, gone = lost.split("/")[0], here / lost
    before = figures(here / run)
    weights = here / run / ("seed-1" if run == "both" else "") / "model" / "model.safetensors"
    made = weights.read_bytes()
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    if lost != "both/metrics.json":
        refused = evaluate(run, cwd=here, cache=cache)
        assert refused.returncode == 2 and "esume" in refused.stderr and "Traceback" not in refused.stderr
    done = unlearn(f"resume={run}", cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    assert gone.exists() and figures(here / run) == before and weights.read_bytes() == made
    assert evaluate(run, cwd=here, cache=cache).returncode == 0
    done = unlearn(f"resume={run}", cwd=here, cache=cache)
    assert done.returncode == 2 and "holds a finished run" in done.stderr


@pytest.mark.parametrize("part", ["both/seed-1", "one"])
def test_a_model_without_its_facts_is_measured_as_it_is(part: str, here: Path, cache: Path) -> None:
    """It may be the user's own by now, so nothing writes over it."""
    shutil.rmtree(here / part / "checkpoints")
    refused = evaluate(part.split("/")[0], cwd=here, cache=cache)
    assert refused.returncode == 2 and f"model={part}/model target=FOLDER" in refused.stderr
    target = next(path.parent for path in cache.glob("models/*/trained.json"))
    typed = [f"model={part}/model", f"target={target}", f"recipe={part}/recipe.yaml", "output=judged"]
    done = evaluate(*typed, cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    assert "holds a finished run" in unlearn("resume=judged", cwd=here, cache=cache).stderr
    run, model = part.split("/")[0], here / part / "model"
    weights = (model / "model.safetensors").read_bytes()
    assert f"move {part}/model away and type: python -m unlearn.run resume={run}" in refused.stderr
    shutil.rmtree(model)
    done = unlearn(f"resume={run}", cwd=here, cache=cache)
    assert done.returncode == 0 and (model / "model.safetensors").read_bytes() == weights, done.stderr


def _huge(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, 1e300, dtype=torch.float64)


SPOILT = {"huge": _huge, "whole": lambda value: torch.ones_like(value, dtype=torch.int64)}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("run", ["one", "averaged"])
def test_weights_that_the_models_type_does_not_hold_make_no_model(run: str, how: str, here: Path, cache: Path) -> None:
    """A float64 of 1e300 is finite in the file and infinite in the model."""
    spoil: Callable[[torch.Tensor], torch.Tensor] = SPOILT[how]
    folder = here / run
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    spoilt = state["average"] if run == "averaged" else state["parameters"][0]
    name = next(iter(spoilt))
    spoilt[name] = spoil(spoilt[name])
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    (folder / "checkpoints" / "outcome.ckpt").unlink()
    shutil.rmtree(folder / "model")
    done = unlearn(f"resume={run}", cwd=here, cache=cache)
    assert done.returncode == 2 and name in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert ("not finite" in done.stderr) == (how == "huge")
    assert not (folder / "model").exists()
