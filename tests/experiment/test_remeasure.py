"""Measuring finished runs and model folders: the figures are those of a run, to the last digit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.toys import ROOT
from tests.toys.command import evaluate, unlearn

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


def models(cache: Path) -> dict[str, Path]:
    records = {path.parent: json.loads(path.read_text()) for path in cache.glob("models/*/trained.json")}
    return {record["subject"]: folder for folder, record in records.items()}


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
    own = models(cache)
    folders = [f"model={finished}/model", f"target={own['target']}", f"retrained={own['retrained']}"]
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
