"""Components that spoil values or end loops: each is one sentence with its name, and what others measure is whole."""

import json
from pathlib import Path

import pytest

from tests.toys import ROOT
from tests.toys.command import unlearn

MODULE = """
import asyncio
from dataclasses import dataclass
import torch
from unlearn.core.records import Picture, Record
from unlearn.data.base import Dataset
from unlearn.data.digits import Digits
from unlearn.evaluators.base import EvaluationResult, Evaluator
from unlearn.models.scope import All
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.edits.base import Edit


class Spoilt(Dataset):
    def __init__(self, base, how):
        self.__dict__.update(base.__dict__)
        self.base, self.how = base, how

    def batch(self, ids):
        found = self.base.batch(ids)
        if self.how == "nan":
            found["image"] = found["image"].float()
            found["image"][:1] = torch.nan
        if self.how == "inf":
            found["image"] = found["image"].double()
            found["image"][:, :, 0, 0] = torch.inf
        if self.how == "large":
            found["image"] = found["image"].long() * 1000
        if self.how == "negative":
            found["image"] = found["image"].float() - 20
        return found


@dataclass
class Data(Digits):
    how: str = ""
    def load(self):
        return Spoilt(super().load(), self.how)


@dataclass(frozen=True)
class Change(Edit):
    how: str = ""
    def __call__(self, target, train, splits):
        if self.how == "stops":
            next(iter([]))
        if self.how == "generator":
            list(next(iter([])) for _ in range(2))
        with torch.no_grad():
            next(target.parameters()).fill_(torch.nan)
        return target


@dataclass(frozen=True)
class Chosen(All):
    how: str = ""
    def select(self, model):
        return next(iter([]))


@dataclass(frozen=True, kw_only=True)
class Cancelled(TrainingLoss):
    how: str = ""
    def __call__(self, model, batch, context):
        if context.step == 1:
            raise asyncio.CancelledError("no more")
        return super().__call__(model, batch, context)


@dataclass(frozen=True, kw_only=True)
class Measure(Evaluator):
    how: str = ""
    def __call__(self, evaluation):
        if self.how == "picture":
            return EvaluationResult(pictures=[Picture("a", "b", "c", b"GIF89a")])
        if self.how == "method":
            evaluation.models["unlearned"].log_prob = lambda *others: None
        if self.how == "ids":
            evaluation.splits["forget"].ids[:] = 0
        ids = evaluation.splits["forget"].ids
        record = Record(evaluator="x", metric="m", subject="unlearned", value=float(ids.sum()))
        return EvaluationResult([record])
"""
SMALL = [
    f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}", "optim.steps=2", "optim.batch=4",
    "pretrain.optim.steps=2", "pretrain.retrained=false", "evaluate=null", "gate=null", "output=run",
]  # fmt: skip
EDIT = ["forget=null", "retain=null"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "spoiling.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize("how", ["nan", "inf", "large", "negative"])
def test_data_that_are_not_what_they_state_are_named(how: str, here: Path, cache: Path) -> None:
    """They ended in "Type a smaller optim.lr", exit code 1."""
    data = f"data={{name: spoiling.Data, how: {how}, forget: {{label: ['3']}}}}"
    done = unlearn(*SMALL, data, cwd=here, cache=cache)
    assert done.returncode == 2 and "spoiling.Spoilt.batch: 'image'" in done.stderr, done.stderr
    assert ("not finite" if how in ("nan", "inf") else "grey levels 0 to") in done.stderr
    assert "in the items " in done.stderr and "optim.lr" not in done.stderr and not (here / "run").exists()


STOPS = {
    "edit=stops": [*EDIT, "edit={name: spoiling.Change, how: stops}"],
    "edit=generator": [*EDIT, "edit={name: spoiling.Change, how: generator}"],
    "scope": ["scope={name: spoiling.Chosen}"],
}


@pytest.mark.parametrize("flags", [[], ["--check"]])
@pytest.mark.parametrize("where", STOPS)
def test_an_iterator_that_ran_out_is_one_sentence(where: str, flags: list[str], here: Path, cache: Path) -> None:
    done = unlearn(*SMALL, *STOPS[where], *flags, cwd=here, cache=cache)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "spoiling.C" in done.stderr and "raised StopIteration" in done.stderr


def test_an_edit_that_writes_nan_makes_no_model(here: Path, cache: Path) -> None:
    done = unlearn(*SMALL, *EDIT, "edit={name: spoiling.Change, how: nan}", cwd=here, cache=cache)
    assert done.returncode == 2 and "spoiling.Change) made weights that are not finite" in done.stderr, done.stderr
    assert not (here / "run" / "model").exists() and "Traceback" not in done.stderr


def test_a_cancelled_task_ends_the_run_as_failed(here: Path, cache: Path) -> None:
    """It is no Exception, so it passed every one of our ends."""
    done = unlearn(*SMALL, "retain={name: spoiling.Cancelled}", cwd=here, cache=cache)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "spoiling.Cancelled.__call__ raised CancelledError: no more" in done.stderr
    assert json.loads((here / "run" / "run.json").read_text())["status"] == "failed"


def test_each_evaluator_has_its_own_ids_and_the_models_own_methods(here: Path, cache: Path) -> None:
    names = {"before": "", "ids": "ids", "after": "", "picture": "picture", "method": "method", "last": ""}
    entries = [f"evaluate.{name}={{name: spoiling.Measure, how: '{how}'}}" for name, how in names.items()]
    done = unlearn(*[one for one in SMALL if one != "evaluate=null"], *entries, cwd=here, cache=cache)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    found = json.loads((here / "run" / "metrics.json").read_text())
    value = {record["evaluator"]: record["value"] for record in found["records"] if record["metric"] == "m"}
    assert value["ids"] == 0 and value["before"] == value["after"] > 0
    assert set(found["failed_evaluators"]) == {"picture", "method", "last"}
    assert "that are no PNG" in done.stderr and "evaluate.method changed the unlearned model" in done.stderr
