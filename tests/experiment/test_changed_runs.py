"""What happens to a run of which something was changed, dropped, deleted or taken since."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.toys import ROOT
from tests.toys.command import evaluate, unlearn
from unlearn.experiment import remeasure
from unlearn.experiment.run_dir import FILES, FOLDERS

SMALL = [
    f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}", "optim.steps=2", "optim.batch=4",
    "pretrain.optim.steps=2", "pretrain.retrained=false", "evaluate.bits_per_dim=null",
]  # fmt: skip
EVALUATORS = """
import errno, os, shutil
from dataclasses import dataclass
from unlearn.core.records import Record
from unlearn.evaluators.base import EvaluationResult, Evaluator
from unlearn.objectives.common.training_loss import TrainingLoss

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no words")

@dataclass(frozen=True, kw_only=True)
class Half(Evaluator):
    how: str = "fails"
    value: float = 1.0
    def __call__(self, evaluation):
        if self.how == "fails":
            raise KeyError("boom")
        if self.how == "permission":
            raise PermissionError(errno.EACCES, "Permission denied", "/theirs/cache")
        if self.how == "full":
            with open("/dev/full", "w") as file:
                file.write("x")
        if self.how == "silent":
            raise Silent
        if self.how == "silent exit":
            raise SystemExit(Silent())
        if self.how == "elsewhere":
            os.chdir(os.sep)
        if self.how == "elsewhere and fails":
            os.chdir(os.sep)
            raise KeyError("boom")
        if self.how == "deletes":
            shutil.rmtree("run")
            raise KeyboardInterrupt
        record = Record(evaluator="x", metric="m", subject="unlearned", value=self.value)
        return EvaluationResult([record], notes=["noted"])

@dataclass(frozen=True, kw_only=True)
class Deletes(TrainingLoss):
    signal: int = 15
    def __call__(self, model, batch, context):
        if self.signal == 0:
            os.chdir(os.sep)
        elif context.step == 1:
            shutil.rmtree("run")
            os.kill(os.getpid(), self.signal)
        return super().__call__(model, batch, context)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = unlearn(*SMALL, "output=run", cwd=folder, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def here(tmp_path: Path, finished: Path) -> Path:
    """A folder with a copy of the finished run, and a module of evaluators."""
    (tmp_path / "evs.py").write_text(EVALUATORS)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())  # type: ignore[no-any-return]


def evaluators(run: Path) -> set[str]:
    return {record["evaluator"] for record in metrics(run)["records"]}


def unfinish(run: Path) -> None:
    status = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**status, "status": "running"}))


def _other_weights(model: Path) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    largest = max(weights, key=lambda name: weights[name].numel())
    save_file({**weights, largest: weights[largest] * 1.5}, file, {"format": "pt"})


@pytest.mark.parametrize("change", ["weights", "configuration", "gone", "added"])
def test_a_changed_model_is_refused_with_what_to_type(change: str, here: Path, cache: Path) -> None:
    model = here / "run" / "model"
    (model / "README.md").write_text("My own card.")
    (model / ".gitattributes").touch()
    assert evaluate("run", cwd=here, cache=cache).returncode == 0, "a card is no part of the model"
    before = metrics(here / "run")
    if change == "weights":
        _other_weights(model)
    elif change == "configuration":
        (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    elif change == "gone":
        (model / "config.json").unlink()
    else:
        (model / "adapter_config.json").write_text("{}")
    refused = evaluate("run", cwd=here, cache=cache)
    assert refused.returncode == 2 and "run/model was changed" in refused.stderr and "Traceback" not in refused.stderr
    assert "model=run/model target=FOLDER recipe=run/recipe.yaml output=FOLDER" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1 and metrics(here / "run") == before
    unfinish(here / "run")
    assert "run/model was changed" in unlearn("resume=run", cwd=here, cache=cache).stderr
    if change == "weights":
        target = next(path.parent for path in cache.glob("models/*/trained.json"))
        typed = ["model=run/model", f"target={target}", "recipe=run/recipe.yaml", "output=judged"]
        assert evaluate(*typed, cwd=here, cache=cache).returncode == 0


def test_measuring_one_of_several_seeds_makes_their_summary_anew(here: Path, cache: Path) -> None:
    settings = ["evaluate.half={name: evs.Half, how: works}", "seed=[0,1]", "output=both"]
    done = unlearn(*SMALL, *settings, cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    (here / "both").rename(here / "moved")
    done = evaluate("moved/seed-0", "evaluate.half.value=3", cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    (mean,) = [record for record in metrics(here / "moved")["records"] if record["evaluator"] == "half"]
    assert mean["value"] == 2 and mean["n"] == 2
    assert "2.00" in (here / "moved" / "report.html").read_text()
    failed = evaluate("moved/seed-1", "evaluate.half.how=fails", cwd=here, cache=cache)
    assert failed.returncode == 1
    (mean,) = [record for record in metrics(here / "moved")["records"] if record["evaluator"] == "half"]
    assert mean["value"] == 3 and mean["n"] == 1
    assert json.loads((here / "moved" / "run.json").read_text())["status"] == "failed"
    _other_weights(here / "moved" / "seed-1" / "model")
    before = metrics(here / "moved" / "seed-0")
    refused = evaluate("moved", "evaluate.half=null", cwd=here, cache=cache)
    assert refused.returncode == 2 and "seed-1/model was changed" in refused.stderr
    assert metrics(here / "moved" / "seed-0") == before, "nothing is written where one seed is refused"
    shutil.rmtree(here / "moved" / "seed-1")
    refused = evaluate("moved", "evaluate.half=null", cwd=here, cache=cache)
    assert refused.returncode == 2 and refused.stderr.endswith("python -m unlearn.run resume=moved\n")


def test_entries_are_dropped_by_their_path_whatever_their_keys_hold(here: Path, cache: Path) -> None:
    entries = "evaluate={evs.Half: {}, 'evs:Half': {}, evs: {name: evs.Half, how: works}, evs.Half.b: {name: evs.Half}}"
    done = unlearn(*SMALL, entries, "evaluate.evs.Half.value=2", "output=dotted", cwd=here, cache=cache)
    assert done.returncode == 1, done.stderr
    run = here / "dotted"
    assert set(metrics(run)["failed_evaluators"]) == {"evs.Half", "evs:Half", "evs.Half.b"}
    merged = unlearn("resume=dotted", "evaluate={cost: {}}", cwd=here, cache=cache)
    assert merged.returncode == 1 and len(metrics(run)["failed_evaluators"]) == 3, "a mapping is laid over the entries"
    some = ["evaluate.evs.Half.b=null", "evaluate.evs:Half=null", "evaluate.evs.Half.how=works"]
    done = unlearn("resume=dotted", *some, cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    assert evaluators(run) == {"cost", "evs", "evs.Half"}
    assert metrics(run)["notes"] == ["evs.Half: noted", "evs: noted"]
    assert evaluate("dotted", "evaluate.evs.Half=null", cwd=here, cache=cache).returncode == 0
    assert evaluators(run) == {"cost", "evs"} and metrics(run)["notes"] == ["evs: noted"]


def test_a_mapping_names_the_entries_to_measure(here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[set[str]] = []
    measure = remeasure.measure
    monkeypatch.setattr(
        remeasure, "measure", lambda recipe, *rest: measured.append(set(recipe.evaluate)) or measure(recipe, *rest)
    )
    settings = [
        "evaluate={evs.Half: {how: works}}", "evaluate={cost: {}}", "evaluate.evs.Half={}", "evaluate={evs.Half: null}"
    ]  # fmt: skip
    for setting in settings:
        assert evaluate("run", setting, cwd=here, cache=cache).returncode == 0
    assert measured == [{"evs.Half"}, {"cost"}, {"evs.Half"}, set()] and evaluators(here / "run") == {"cost"}


HOWS = ("permission", "full", "silent", "silent exit", "elsewhere and fails")


def test_what_an_evaluator_does_to_itself_costs_its_own_figures_only(here: Path, cache: Path) -> None:
    entries = [f"evaluate.e{number}={{name: evs.Half, how: {how}}}" for number, how in enumerate(HOWS)]
    more = ["evaluate.away={name: evs.Half, how: elsewhere}", "evaluate.last={name: evs.Half, how: works}"]
    more.append("retain={name: evs.Deletes, signal: 0}")  # an objective that goes elsewhere
    done = unlearn(*SMALL, *entries, *more, "output=hurt", cwd=here, cache=cache)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    run = here / "hurt"
    assert metrics(run)["failed_evaluators"] == [f"e{number}" for number in range(len(HOWS))]
    assert evaluators(run) == {"cost", "away", "last"} and (run / "report.html").is_file()
    assert "e0: failed (PermissionError" in done.stderr and "e1: failed (OSError" in done.stderr
    assert "e2: failed (Silent)" in done.stderr


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_name_that_is_taken_by_another_kind_is_one_sentence(name: str, here: Path, cache: Path) -> None:
    run, path = here / "run", here / "run" / name
    unfinish(run)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.touch() if name in FOLDERS else path.mkdir()
    for done in (unlearn("resume=run", cwd=here, cache=cache), evaluate("run", cwd=here, cache=cache)):
        assert done.returncode == 2 and f"run/{name} is" in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_names_below_that_are_taken_are_one_sentence(here: Path, cache: Path) -> None:
    card = here / "run" / "model" / "README.md"
    card.unlink()
    card.mkdir()
    done = evaluate("run", cwd=here, cache=cache)
    assert done.returncode == 2 and "run/model/README.md is a folder" in done.stderr and "Traceback" not in done.stderr
    card.rmdir()
    shutil.rmtree(here / "run" / "samples")
    (here / "run" / "samples").symlink_to(here / "nowhere")
    assert evaluate("run", cwd=here, cache=cache).returncode == 2


DELETES = "evaluate.half={name: evs.Half, how: deletes}"


@pytest.mark.parametrize(
    ("setting", "resumed"),
    [
        (DELETES, False),
        (DELETES, True),
        ("retain={name: evs.Deletes}", False),
        ("retain={name: evs.Deletes, signal: 2}", False),
    ],
)
def test_a_stopped_run_whose_folder_is_gone_is_not_resumed(
    setting: str, resumed: bool, here: Path, cache: Path
) -> None:
    shutil.rmtree(here / "run")
    if resumed:
        assert unlearn(*SMALL, "evaluate.half={name: evs.Half}", "output=run", cwd=here, cache=cache).returncode == 1
    done = unlearn(*(["resume=run"] if resumed else [*SMALL, "output=run"]), setting, cwd=here, cache=cache)
    assert done.returncode in (1, 130) and "resume" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "start it again" in done.stderr.lower() and not os.path.lexists(here / "run")


def test_pictures_of_dropped_entries_leave_the_folder_and_the_report(here: Path, cache: Path) -> None:
    grids = ["evaluate.samples={name: sample_grid, side: 2}", "evaluate.more={name: sample_grid, side: 2}"]
    done = unlearn(*SMALL, *grids, "evaluate.bad={name: evs.Half}", "output=seen", cwd=here, cache=cache)
    assert done.returncode == 1, done.stderr
    run = here / "seen"
    (run / "samples" / "mine.png").touch()
    names = {picture["name"]: picture["evaluator"] for picture in metrics(run)["pictures"]}
    assert {"samples", "more"} == set(names.values())
    done = unlearn("resume=seen", "evaluate.bad=null", "evaluate.more=null", cwd=here, cache=cache)
    assert done.returncode == 0, done.stderr
    kept = {f"{name}.png" for name, evaluator in names.items() if evaluator == "samples"}
    assert {path.name for path in (run / "samples").iterdir()} == {*kept, "mine.png"}
    assert "(more)" not in (run / "report.html").read_text() and (run / "report.html").read_text().count("(samples)")
    assert evaluate("seen", "evaluate.samples=null", cwd=here, cache=cache).returncode == 0
    assert {path.name for path in (run / "samples").iterdir()} == {"mine.png"}
