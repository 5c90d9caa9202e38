"""What a run leaves when something fails after its steps, and what is held against the saved model."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.toys import ROOT
from tests.toys.command import unlearn as command
from tests.toys.diffusion import small_model, small_splits
from tests.toys.flow import digits_splits, small_glow
from tests.toys.gan import digit_splits, small_gan
from tests.toys.language import tiny, tiny_splits
from unlearn.core.errors import RecipeError
from unlearn.data.base import Split
from unlearn.experiment.output_folder import new_folder
from unlearn.experiment.read_back import ReadBackFailed, check_read_back
from unlearn.experiment.run_dir import RunDir
from unlearn.models.base import Wrapper

SMALL = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}"
BAD = """
from dataclasses import dataclass
from unlearn.evaluators.base import Evaluator, EvaluationResult

@dataclass(frozen=True, kw_only=True)
class Bad(Evaluator):
    kind: str = "key"
    def __call__(self, evaluation):
        if self.kind == "exit":
            raise SystemExit(0)
        if self.kind == "nothing":
            return None
        raise KeyError("boom")
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("kind", ["key", "exit", "nothing"])
def test_an_evaluator_that_fails_costs_its_own_figures_only(kind: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    entry = f"evaluate.bad={{name: bad.Bad, kind: {kind}}}"
    done = command(SMALL, entry, "optim.steps=2", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 1 and "bad: failed" in done.stderr and "Traceback" not in done.stderr
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert {record["evaluator"] for record in metrics["records"]} == {"bits_per_dim", "cost"}
    assert metrics["failed_evaluators"] == ["bad"] and any(note.startswith("bad: failed") for note in metrics["notes"])
    assert "Traceback" in (run / "log.txt").read_text()
    assert "bad: failed" in (run / "report.html").read_text() and (run / "model" / "model.safetensors").is_file()
    before = load_file(run / "model" / "model.safetensors")
    again = command("resume=run", "evaluate.bad=null", cwd=tmp_path, cache=cache)
    assert again.returncode == 0, again.stderr
    after = json.loads((run / "metrics.json").read_text())
    assert after["records"] == metrics["records"] and after["failed_evaluators"] == []
    assert all(torch.equal(value, before[name]) for name, value in load_file(run / "model/model.safetensors").items())
    assert json.loads((run / "run.json").read_text())["status"] == "done"


MEDDLES = """
import asyncio
import torch
from dataclasses import dataclass
from unlearn.evaluators.base import Evaluator, EvaluationResult

@dataclass(frozen=True, kw_only=True)
class Meddles(Evaluator):
    how: str
    def __call__(self, evaluation):
        models = evaluation.models
        if self.how == "weights":
            with torch.no_grad():
                next(models["unlearned"].parameters()).mul_(1.5)
            models["target"]
        if self.how == "order":
            with torch.no_grad():
                for parameter in models["unlearned"].parameters():
                    parameter.copy_(parameter.flatten().flip(0).view_as(parameter))
            models["target"]
        if self.how == "type":
            models["target"].double()
        if self.how == "device":
            models["unlearned"].to("meta")
        if self.how == "settings":
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("meta")
            models["unlearned"].train()
        if self.how == "cancelled":
            raise asyncio.CancelledError
        return EvaluationResult()
"""


@pytest.mark.parametrize("how", ["weights", "order", "type", "device", "settings", "cancelled"])
def test_an_evaluator_that_changes_what_others_measure(how: str, tmp_path: Path, cache: Path) -> None:
    """A changed model is measured by nobody after it; torch's settings are put back, so that figures are the same."""
    (tmp_path / "own.py").write_text(MEDDLES)
    after = "after: {name: bits_per_dim, items: 8, draws: 1}}"
    whole = [SMALL, "optim.steps=2", "evaluate.bits_per_dim=null", "evaluate.cost=null", f"evaluate={{{after}"]
    first = [*whole[:-1], f"evaluate={{own: {{name: own.Meddles, how: {how}}}, {after}"]
    assert command(*whole, "output=whole", cwd=tmp_path, cache=cache).returncode == 0
    done = command(*first, "output=run", cwd=tmp_path, cache=cache)
    found, right = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "whole"))
    if how in ("settings", "cancelled"):
        assert done.returncode == (0 if how == "settings" else 1)
        assert found["records"] == right["records"]
    else:
        assert done.returncode == 1 and found["records"] == []
        assert any("evaluate.own changed the" in note and note.startswith("after") for note in found["notes"])
        again = command("resume=run", "evaluate.own=null", cwd=tmp_path, cache=cache)
        assert again.returncode == 0
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["records"] == right["records"]


def test_a_resumed_run_keeps_all_but_what_measures(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    command(SMALL, "evaluate.bad={name: bad.Bad}", "optim.steps=2", "output=run", cwd=tmp_path, cache=cache)
    for setting in ("optim.steps=3", "data.forget.label=5", "seed=4", "evaluates={}"):
        done = command("resume=run", setting, cwd=tmp_path, cache=cache)
        assert done.returncode == 2 and setting in done.stderr and "output=FOLDER" in done.stderr
    recipe = tmp_path / "run" / "recipe.yaml"
    (tmp_path / "theirs.py").write_text("import pathlib\npathlib.Path('imported').touch()\nclass Theirs: pass\n")
    recipe.write_text(recipe.read_text().replace("bad.Bad", "theirs.Theirs"))
    done = command("resume=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 2 and "was changed" in done.stderr and not (tmp_path / "imported").exists()


def test_a_folder_whose_run_was_killed_at_once_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearn.config.recipe import load

    monkeypatch.chdir(tmp_path)
    recipe = load(SMALL.split("=", 1)[1], ["output=run"])
    run = RunDir(tmp_path / "run")
    with run.held():
        (run.folder / "command.txt").write_text("python")
        (run.folder / "recipe.yaml").write_text("name: x")
        with pytest.raises(RecipeError, match="not an empty folder"):
            new_folder(recipe)  # its process still works
    assert new_folder(recipe) == Path("run")
    other = load(SMALL.split("=", 1)[1], ["output=nowhere/../other"])
    assert new_folder(other) == Path("other") and not (tmp_path / "nowhere").exists()
    (run.folder / "thesis.tex").touch()
    with pytest.raises(RecipeError, match="not an empty folder"):
        new_folder(recipe)


@pytest.mark.parametrize(("key", "inside"), [("pretrained", "given/run"), ("retrained", "given"), ("pretrained", None)])
def test_a_run_inside_a_given_model_is_refused(
    key: str, inside: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would change the model's hash, so that the run could neither be resumed nor measured again."""
    from unlearn.config.recipe import load

    (tmp_path / "given").mkdir()
    monkeypatch.chdir(tmp_path if inside else tmp_path / "given")
    settings = [f"model.{key}={tmp_path / 'given'}", *([f"output={inside}"] if inside else [])]
    with pytest.raises(RecipeError, match=rf"lies in model\.{key}=.*output=FOLDER"):
        new_folder(load(SMALL.split("=", 1)[1], settings))
    assert not any((tmp_path / "given").iterdir())
    fine = load(SMALL.split("=", 1)[1], [settings[0], f"output={tmp_path / 'beside'}"])
    assert new_folder(fine) == tmp_path / "beside"


def test_a_folder_with_files_of_the_user_is_not_taken(tmp_path: Path, cache: Path) -> None:
    """A recipe beside its output is the user's, also where a killed run would have left a file of that name."""
    kept = {"recipe.yaml": f"# mine\nbase: {SMALL.split('=', 1)[1]}\n", "command.txt": "notes"}
    (tmp_path / "mine").mkdir()
    for name, text in kept.items():
        (tmp_path / "mine" / name).write_text(text)
    done = command("recipe=mine/recipe.yaml", "output=mine", cwd=tmp_path, cache=cache)
    assert done.returncode == 2 and "not an empty folder" in done.stderr
    assert {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()} == kept
    with pytest.raises(RecipeError, match="wrong"), RunDir(tmp_path / "mine").held():
        (tmp_path / "mine" / "log.txt").touch()
        raise RecipeError("wrong")  # what the run made goes, and nothing else
    assert {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()} == kept


def test_a_run_whose_folder_is_deleted_ends_with_one_sentence(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "thief.py").write_text(
        BAD.replace('raise KeyError("boom")', 'import shutil; shutil.rmtree("run"); return EvaluationResult()')
    )
    done = command(SMALL, "evaluate.bad={name: thief.Bad}", "optim.steps=2", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 1 and "run was deleted" in done.stderr and "Traceback" not in done.stderr


FULL = """
import errno
import os
from dataclasses import dataclass
from safetensors import SafetensorError
from unlearn.evaluators.base import EvaluationResult, Evaluator
from unlearn.objectives.common.training_loss import TrainingLoss


def fail(how):
    if how == "os":
        raise OSError(errno.EROFS, "Read-only file system", "run/metrics.json")
    if how == "safetensors":
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise RuntimeError("PytorchStreamWriter failed writing file")


@dataclass(frozen=True, kw_only=True)
class Late(Evaluator):
    how: str = "os"
    def __call__(self, evaluation):
        os.fsync = lambda number: fail(self.how)  # from here on, whatever is written whole
        return EvaluationResult()


@dataclass(frozen=True, kw_only=True)
class Early(TrainingLoss):
    at: int = 0
    def __call__(self, model, batch, context):
        if context.step == self.at:
            fail("os")
        return super().__call__(model, batch, context)
"""


@pytest.mark.parametrize(
    ("setting", "saved"),
    [
        ("evaluate.bad={name: full.Late}", "model is saved in run/model"),
        ("evaluate.bad={name: full.Late, how: safetensors}", "model is saved in run/model"),
        ("evaluate.bad={name: full.Late, how: torch}", "model is saved in run/model"),
        ("retain={name: full.Early, at: 3}", "last checkpoint is saved in run/checkpoints/last.ckpt"),
        ("retain={name: full.Early}", "Nothing of the run in run is saved yet"),
    ],
)
def test_a_disk_that_takes_no_more_says_what_is_saved(
    setting: str, saved: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full or read-only from some moment on: one sentence, with the way to go on."""
    monkeypatch.setattr(os, "fsync", os.fsync)  # put back afterwards
    (tmp_path / "full.py").write_text(FULL)
    settings = [setting, "optim.steps=4", "trainer.checkpoint_every=2", "pretrain.retrained=false", "output=run"]
    done = command(SMALL, *settings, cwd=tmp_path, cache=cache)
    assert done.returncode == 1 and saved in done.stderr and "Traceback" not in done.stderr, done.stderr


def _drop_one(folder: Path) -> str:
    """Remove a tensor of a folder's largest file of weights; return its name."""
    file = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    weights = load_file(file)
    name = next(name for name in sorted(weights) if weights[name].dim() > 1)
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    return name


def _round_one(folder: Path) -> str:
    """Round the first tensor of a folder's largest file of weights to half precision; return its name."""
    file = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    weights = load_file(file)
    name = next(name for name in sorted(weights) if weights[name].dim() > 1)
    weights[name] = (weights[name].half() * 1.01).to(weights[name].dtype)
    save_file(weights, file, {"format": "pt"})
    return name


def _saved(family: str) -> tuple[Wrapper, Any, Split]:
    """Return a model of a family, something that reads its folder, and data."""
    if family == "flow":
        splits = digits_splits()
        model: Any = small_glow(splits, torch.float32)
    elif family == "gan":
        splits, model = digit_splits(), small_gan(dtype=torch.float32)
    elif family == "diffusion":
        splits, model = small_splits(), small_model()
    else:
        splits, model = tiny_splits(), tiny()
    return model, SimpleNamespace(wrapper=type(model), load=type(model).from_pretrained), splits["retain"]


@pytest.mark.parametrize("change", [_drop_one, _round_one])
@pytest.mark.parametrize("family", ["flow", "gan", "diffusion", "language"])
def test_a_saved_model_that_lost_something_is_seen(family: str, change: Callable[[Path], str], tmp_path: Path) -> None:
    model, config, split = _saved(family)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    model.save_pretrained(good)
    check_read_back(model, config, good, split, torch.device("cpu"))
    shutil.copytree(good, bad)
    change(bad)
    with pytest.raises(ReadBackFailed):
        check_read_back(model, config, bad, split, torch.device("cpu"))


WRONG_KINDS = """
from dataclasses import dataclass
from unlearn.core.records import Picture, Record, TextTable
from unlearn.evaluators.base import EvaluationResult, Evaluator

def record(**changed):
    return Record(**{"evaluator": "x", "metric": "m", "subject": "unlearned", "value": 1.0, **changed})

MADE = {
    "none": lambda: EvaluationResult([record(value=None)]),
    "text": lambda: EvaluationResult([record(value="abc")]),
    "interval": lambda: EvaluationResult([record(ci95="low")]),
    "about": lambda: EvaluationResult([record(about={"k": 3})]),
    "direction": lambda: EvaluationResult([record(direction="sideways")]),
    "dict": lambda: EvaluationResult([{"value": 1}]),
    "picture": lambda: EvaluationResult(pictures=[Picture("a", "b", "c", None)]),
    "table": lambda: EvaluationResult(text_tables=[TextTable("a", "b", "c", ["d"], [[None]])]),
    "foreign": lambda: EvaluationResult([record(evaluator="another")]),
}

@dataclass(frozen=True, kw_only=True)
class Kinds(Evaluator):
    made: str = "none"
    def __call__(self, evaluation):
        return MADE[self.made]()
"""
KINDS = ("none", "text", "interval", "about", "direction", "dict", "picture", "table", "foreign")


def test_wrong_kinds_within_a_result_cost_its_own_figures_only(tmp_path: Path, cache: Path) -> None:
    """All at once, one of them under a dotted path with a colon; a record under a foreign name gets its entry's."""
    (tmp_path / "kinds_of.py").write_text(WRONG_KINDS)
    entries = [f"evaluate.{made}={{name: kinds_of.Kinds, made: {made}}}" for made in KINDS]
    more = ["evaluate={'kinds_of:Kinds': {}}", *entries]
    done = command(SMALL, *more, "optim.steps=2", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["failed_evaluators"]) == {"kinds_of:Kinds", *KINDS} - {"foreign"}
    assert {record["evaluator"] for record in metrics["records"]} == {"bits_per_dim", "cost", "foreign"}
    assert all(f"{name}: failed" in done.stderr for name in metrics["failed_evaluators"])
    assert (tmp_path / "run" / "report.html").is_file()
