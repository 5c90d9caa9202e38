"""What ``--check`` tries, and what it says of the rest."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch

from tests.toys.language import tiny
from tests.toys.language_files import SMALL
from tests.toys.pipelines import small_pipeline
from unlearn.config.recipe import load
from unlearn.config.registry import names, resolve
from unlearn.core.errors import RecipeError
from unlearn.core.validation import NonNegativeInt, PositiveFloat, PositiveInt, Range, at_least, distinct, smallest
from unlearn.data.base import Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.evaluators.base import Evaluator
from unlearn.experiment import dry_run, trial
from unlearn.experiment.runner import check
from unlearn.run import main

OWN = '''
"""Evaluators of a user's own, which tell what they were called with, refuse, or are wrong."""
from dataclasses import dataclass
from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveInt
from unlearn.evaluators.base import Evaluator, EvaluationResult

CALLS = []

@dataclass(frozen=True, kw_only=True)
class Tells(Evaluator):
    rounds: PositiveInt = 100
    batch_size: PositiveInt = 64

    def __call__(self, evaluation):
        sizes = {name: len(split) for name, split in evaluation.splits.items()}
        CALLS.append((self.rounds, self.batch_size, sizes, sorted(evaluation.models), evaluation.run.steps))
        return EvaluationResult()

@dataclass(frozen=True, kw_only=True)
class Refuses(Evaluator):
    def __call__(self, evaluation):
        raise RecipeError("the moon is not full. Type evaluate.own=null.")

@dataclass(frozen=True, kw_only=True)
class Wrong(Evaluator):
    def __call__(self, evaluation):
        return evaluation.no_such_thing

@dataclass(frozen=True, kw_only=True)
class Ends(Evaluator):
    def __call__(self, evaluation):
        raise SystemExit(0)

@dataclass(frozen=True, kw_only=True)
class Lacks(Evaluator):
    def __call__(self, evaluation):
        import a_package_that_is_not_here

@dataclass(frozen=True, kw_only=True)
class Compares(Evaluator):
    subjects = ("retrained",)

    def __call__(self, evaluation):
        raise AssertionError("there is no such model")
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with evaluators of a user's own, and with a cache that holds nothing."""
    (tmp_path / "dry_run_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dry_run_own", raising=False)
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path


FILE = SMALL.partition("=")[2]


def own(name: str, *settings: str) -> list[str]:
    return [SMALL, f"evaluate.own={{name: dry_run_own:{name}}}", *settings]


# ---------------------------------------------------------------------------------------------------- evaluators


def test_every_evaluator_is_called_with_two_items_and_its_smallest_settings(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a step, on target, unlearned and retrained model; nothing is left in the folder."""
    assert main([*own("Tells"), "--check"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("The recipe is sound.\n") and "evaluate.own" in said and "not tried" not in said
    ((rounds, batch_size, sizes, models, steps),) = sys.modules["dry_run_own"].CALLS
    assert (rounds, batch_size, steps) == (2, 64, 1) and models == ["retrained", "target", "unlearned"]
    assert set(sizes) >= {"forget", "retain", "holdout"} and set(sizes.values()) == {2}
    assert {path.name for path in here.iterdir()} <= {"dry_run_own.py", "__pycache__"}


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("Refuses", 2, "evaluate.own: the moon is not full. Type evaluate.own=null."),
        ("Wrong", 1, "evaluate.own raised this when it was tried on 2 items."),
        ("Ends", 2, "dry_run_own.Ends.__call__ ended the program"),
    ],
)
def test_an_evaluator_that_fails_is_named(
    name: str, code: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*own(name), "--check"]) == code
    said = capsys.readouterr()
    assert message in said.err and "sound" not in said.out
    assert ("Traceback" in said.err) == (code == 1)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("Lacks", [], "the package a_package_that_is_not_here is not installed"),
        (
            "Compares",
            ["model.retrained=nobody/nothing"],
            "it compares with the retrained model, which is not tried",
        ),
    ],
)
def test_what_is_not_tried_is_said_in_place_of_sound(
    name: str, settings: list[str], reason: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*own(name), *settings, "--check"]) == 0
    said = capsys.readouterr().out
    assert f"not tried: evaluate.own ({reason})" in said and "sound" not in said
    verdict = said.splitlines()[-1]
    assert "evaluate.memorization" in verdict and verdict.rindex("Not tried") < verdict.rindex("evaluate.own")


def test_a_folder_that_is_not_there_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").touch()
    for name in ("nothing", "file"):
        assert main([SMALL, f"model.retrained={here / name}", "--check"]) == 2
        assert "model.retrained: " in capsys.readouterr().err


def test_the_time_of_all_is_bounded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    said = check(load(FILE))
    assert "not tried: evaluate.memorization, evaluate.cost (the others took 0 s)" in said
    assert said.endswith("a step. Not tried: evaluate.memorization, evaluate.cost.")


# -------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers."""
    folder = tmp_path_factory.mktemp("given")
    tiny().save_pretrained(folder)
    return folder


def test_small_weights_that_are_given_are_read(given: Path, here: Path) -> None:
    said = check(load(FILE, ["model={name: causal_lm}", f"model.pretrained={given}"]))
    assert "on the given model" in said and "to measure one model at a time" in said
    assert said.endswith("The recipe is sound.")


def test_large_weights_are_left_alone(given: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are those that are not here; the sizes are told from the configuration all the same."""
    settings = ["model={name: causal_lm}", f"model.pretrained={given}"]
    monkeypatch.setattr(dry_run, "SMALL", 10)
    said = check(load(FILE, settings))
    assert "built without its weights" in said and "are not read)" in said
    assert said.endswith("data and settings. Not tried: a step, evaluate.memorization, evaluate.cost.")


def test_weights_that_are_broken_are_refused(given: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = here / "broken"
    broken.mkdir()
    for path in given.iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes()[:2000] if path.suffix == ".safetensors" else path.read_bytes()
        )
    assert main([SMALL, "model={name: causal_lm}", f"model.pretrained={broken}", "--check"]) == 2
    said = capsys.readouterr().err
    assert str(broken) in said and "cannot be read" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "the configuration beside it asks for"),
        ({"vocab_size": 7}, "The tokenizer has tokens up to number"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised"),
    ],
)
def test_what_does_not_fit_is_refused_without_the_weights(
    changes: dict[str, Any], message: str, given: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their size: width, vocabulary and quantisation stand in the headers and the configuration."""
    monkeypatch.setattr(dry_run, "SMALL", 10)
    folder = here / "changed"
    shutil.copytree(given, folder)
    config = json.loads((folder / "config.json").read_text())
    if "vocab_size" in changes:
        (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(RecipeError, match=message):
        check(load(FILE, ["model={name: causal_lm}", f"model.pretrained={folder}"]))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}, ""),
        ("unet/config.json", {"cross_attention_dim": 24}, "24"),
        ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
    ],
)
def test_the_parts_of_a_pipeline_are_compared_without_the_weights(
    file: str, changes: dict[str, Any], message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is the control: what changes neither shape nor schedule is accepted."""
    monkeypatch.setattr(dry_run, "SMALL", 10)
    folder = here / "pipeline"
    small_pipeline().save_pretrained(folder)
    stated = json.loads((folder / file).read_text())
    changes = {key: value if message else stated[key] for key, value in changes.items()}
    (folder / file).write_text(json.dumps({**stated, **changes}))
    settings = ["data.concepts=[{name: three, anchor: eight}]", f"model.pretrained={folder}"]
    recipe = load("diffusion/stable_diffusion", settings)
    if message:
        with pytest.raises(RecipeError, match=message):
            check(recipe)
    else:
        assert "not tried: a step, evaluate." in check(recipe)


def test_the_shipped_model_is_taken() -> None:
    said = check(load("quickstart"))
    assert "on the shipped model" in said and said.endswith("The recipe is sound.")


# ------------------------------------------------------------------------------------------------------ smallest


@dataclass(frozen=True)
class Inner:
    steps: PositiveInt = 500
    rate: PositiveFloat = 0.1


@dataclass(frozen=True)
class Outer:
    many: PositiveInt = 40
    none: PositiveInt | None = None
    one: NonNegativeInt = 1
    four: Annotated[int, Range(at_least, 4)] | None = 64
    counts: Annotated[list[int], Range(distinct, 0)] = (0, 10, 50)  # type: ignore[assignment]
    free: int = 77
    share: float = 0.5
    batch_size: PositiveInt = 32
    inner: Inner = Inner()
    kind: ClassVar[str] = "class"


def test_counts_are_as_small_as_their_types_allow() -> None:
    found = smallest(Outer(counts=[0, 10, 50]), least=2, keep=("batch_size",))
    assert found == Outer(many=2, four=4, counts=[2], inner=Inner(steps=2), one=1)


@pytest.mark.parametrize("name", names("evaluator"))
def test_the_smallest_settings_of_every_evaluator_are_valid(name: str) -> None:
    cls: type[Evaluator] = resolve("evaluator", name)
    needs: dict[str, Any] = {
        "clip_score": {"path": "x"},
        "nudity": {"path": "x"},
        "attribute_share": {"attributes": ["x"]},
    }
    made = cls(**needs.get(name, {}))
    small = made.smallest()
    assert type(small) is cls and small.smallest() == small


# ----------------------------------------------------------------------------------------------------- few items


def test_a_few_items_differ_as_much_as_they_can() -> None:
    """A passage, a question without other wordings, and one with them: two items are of two kinds, three of all."""
    plain = [TextItem(f"q{n}", "a", label="x") for n in range(5)]
    rich = TextItem("q", "a", label="x", forms={"paraphrased_question": ("p", "a"), "perturbed_0": ("q", "b")})
    data = TextDataset([*plain, rich, TextItem("", "a passage", label="y")], torch.zeros(7, dtype=torch.bool))
    split = Split("forget", data, torch.arange(7))
    assert split.few(2).ids.tolist() == [5, 6] and split.few(1).ids.tolist() == [5]
    assert split.few(3).ids.tolist() == [0, 5, 6] and len(split.few(100)) == 7
    assert split.few(2).whole is split.ids
