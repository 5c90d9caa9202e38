"""Measuring finished runs and model folders: the figures are those of a run, to the last digit."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.toys import ROOT
from tests.toys.clip import small_clip
from tests.toys.command import evaluate, unlearn
from tests.toys.pipelines import METHODS, images, stable_diffusion
from tests.toys.pipelines import recipe as pipeline_recipe

SMALL = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    settings = ["optim.steps=3", "evaluate.samples={name: sample_grid}", "select={metric: bits_per_dim, every: 2}"]
    done = unlearn(SMALL, *settings, "output=run", cwd=folder, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())  # type: ignore[no-any-return]


def beside(run: Path, cache: Path) -> list[str]:
    """Return the settings that name the models that a run began from and compared with."""
    folders = {json.loads(path.read_text())["key"]: path.parent for path in cache.glob("models/*/trained.json")}
    keys = json.loads((run / "run.json").read_text())["works_on"]
    return [f"{subject}={folders[keys[f'{subject} model']]}" for subject in ("target", "retrained")]


def test_the_same_evaluators_give_the_same_records(finished: Path, tmp_path: Path, cache: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    done = evaluate("run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    before, after = metrics(finished), metrics(run)
    for key in ("records", "pictures", "text_tables", "notes", "hash", "steps", "failed_gates"):
        assert before[key] == after[key], key
    assert (run / "items.csv").read_text() == (finished / "items.csv").read_text()


def test_further_entries_join_the_run_and_dropped_ones_leave_it(finished: Path, tmp_path: Path, cache: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    more = ["evaluate.again={name: bits_per_dim, draws: 2}", "evaluate.cost=null", "gate.a={metric: steps, max: 1}"]
    refused = evaluate("run", *more, cwd=tmp_path, cache=cache)
    assert refused.returncode == 2 and "gate.a" in refused.stderr, "the figure of a dropped entry"
    assert metrics(run) == metrics(finished)
    more[-1] = "gate.a={metric: bits_per_dim, split: forget, evaluator: again, max: 0.1}"
    done = evaluate("run", *more, cwd=tmp_path, cache=cache)
    assert done.returncode == 3 and "gate.a missed" in done.stderr
    before, after = metrics(finished)["records"], metrics(run)["records"]
    assert [r for r in after if r["evaluator"] != "again"] == [r for r in before if r["evaluator"] != "cost"]
    assert {r["evaluator"] for r in after} == {"bits_per_dim", "samples", "again"} - {"samples"}
    assert metrics(run)["failed_gates"] and "again" in (run / "report.html").read_text()
    assert "again" in (run / "recipe.yaml").read_text(), "the run can be measured once more"
    assert evaluate("run", "evaluate.again=null", "gate=null", cwd=tmp_path, cache=cache).returncode == 0


LONG = """
from dataclasses import dataclass
from unlearn.evaluators.base import EvaluationResult, Evaluator

@dataclass(frozen=True, kw_only=True)
class Long(Evaluator):
    def __call__(self, evaluation):
        return EvaluationResult(items=[{"evaluator": "another", "text": "=long" * 40_000, "other": "a\\nb"}])
"""


def test_long_texts_of_items_stay_when_more_is_measured(finished: Path, tmp_path: Path, cache: Path) -> None:
    """A reader of CSV takes 131,072 characters at first; items go by their evaluator's key, whatever they say."""
    (tmp_path / "long_items.py").write_text(LONG)
    run = shutil.copytree(finished, tmp_path / "run")
    assert evaluate("run", "evaluate.long=long_items.Long", cwd=tmp_path, cache=cache).returncode == 0
    before = (run / "items.csv").read_text()
    assert "another" not in before and len(before) > 200_000
    done = evaluate("run", "evaluate.long={}", "evaluate.cost={}", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    assert (run / "items.csv").read_text() == before
    (run / "items.csv").write_bytes(b"evaluator\n\xff\n")
    done = evaluate("run", "evaluate.cost={}", cwd=tmp_path, cache=cache)
    assert done.returncode == 2 and "items.csv cannot be read" in done.stderr


def test_a_full_disk_while_measuring_more_names_what_goes_on(
    finished: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run cannot be resumed, so the remedy is the command itself."""
    shutil.copytree(finished, tmp_path / "run")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        done = evaluate("run", "evaluate.cost={}", cwd=tmp_path, cache=cache)
    assert done.returncode == 1 and "type the same command again" in done.stderr, done.stderr
    assert evaluate("run", "evaluate.cost={}", cwd=tmp_path, cache=cache).returncode == 0


def test_what_trains_is_refused(finished: Path, tmp_path: Path, cache: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    for setting in ("optim.steps=9", "model.depth=1"):
        done = evaluate("run", setting, cwd=tmp_path, cache=cache)
        assert done.returncode == 2 and setting in done.stderr
    assert evaluate("run", "target=run", cwd=tmp_path, cache=cache).returncode == 2
    assert evaluate("nowhere", cwd=tmp_path, cache=cache).returncode == 2
    assert metrics(run) == metrics(finished)
    (run / "checkpoints" / "outcome.ckpt").unlink()
    done = evaluate("run", cwd=tmp_path, cache=cache)
    assert done.returncode == 2 and "resume=run" in done.stderr


def test_several_seeds_are_summarised_anew(tmp_path: Path, cache: Path) -> None:
    done = unlearn(SMALL, "optim.steps=2", "seed=[0,1]", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    before = metrics(tmp_path / "run")["records"]
    done = evaluate("run", "evaluate.twice={name: bits_per_dim, draws: 2}", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    after = metrics(tmp_path / "run")["records"]
    assert [record for record in after if record["evaluator"] != "twice"] == before
    assert {record["n"] for record in after if record["evaluator"] == "twice"} == {2}


def test_a_model_folder_has_the_figures_of_its_run(finished: Path, tmp_path: Path, cache: Path) -> None:
    folders = [f"model={finished}/model", *beside(finished, cache)]
    settings = ["evaluate.samples={name: sample_grid}", "select={metric: bits_per_dim, every: 2}", "output=judged"]
    done = evaluate(*folders, SMALL, *settings, cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    of_run = [record for record in metrics(finished)["records"] if record["evaluator"] != "cost"]
    judged = metrics(tmp_path / "judged")
    assert judged["records"] == of_run and any(note.startswith("cost:") for note in judged["notes"])
    assert (tmp_path / "judged" / "report.html").is_file() and not (tmp_path / "judged" / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=a", SMALL], "target=FOLDER"),
        (["target=a", SMALL], "model=FOLDER"),
        (["model=a", "target=a"], "recipe=NAME"),
        (["model=a", "target=a", SMALL, "seed=[0,1]"], "seed=0"),
        (["model=a", "target=a", SMALL], "no folder"),
    ],
)
def test_missing_folders_are_named(arguments: list[str], message: str, tmp_path: Path, cache: Path) -> None:
    done = evaluate(*arguments, cwd=tmp_path, cache=cache)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_plain_transformers_has_the_figures_of_a_run(tmp_path: Path, cache: Path) -> None:
    small = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small_language.yaml'}"
    done = unlearn(small, "optim.steps=2", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(tmp_path / "run" / "model").save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "unlearn.json").exists()
    done = evaluate("model=plain", *beside(tmp_path / "run", cache), small, "output=judged", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    of_run = [record for record in metrics(tmp_path / "run")["records"] if record["evaluator"] != "cost"]
    assert metrics(tmp_path / "judged")["records"] == of_run and of_run


def test_a_folder_of_plain_diffusers_has_the_figures_of_a_run(tmp_path: Path, cache: Path) -> None:
    target, data = stable_diffusion(tmp_path / "target"), images(tmp_path / "images", 16)
    measured = {"clip_score": {"path": str(small_clip(tmp_path / "clip")), "samples": 2}}
    file = pipeline_recipe(tmp_path / "recipe.yaml", target, data, 16, evaluate=measured, **METHODS["uce"])
    done = unlearn(f"recipe={file}", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model", safety_checker=None).save_pretrained(
        tmp_path / "plain"
    )
    done = evaluate("model=plain", f"target={target}", f"recipe={file}", "output=judged", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "judged")["records"] == metrics(tmp_path / "run")["records"] != []
