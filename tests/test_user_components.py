"""A user's component that ends the program, or returns something else than its class promises, is one sentence."""

from pathlib import Path

import pytest

from tests.toys.command import unlearn

MODULE = """
import sys
from dataclasses import dataclass
import torch
from unlearn.data.base import Dataset
from unlearn.data.digits import Digits
from unlearn.evaluators.base import EvaluationResult, Evaluator
from unlearn.models.guards.base import Guard
from unlearn.models.scope import All
from unlearn.objectives.base import Objective, ParameterObjective, Values
from unlearn.objectives.edits.base import Edit
from unlearn.objectives.surgery import Combination


def answer(how, right=None):
    if how == "exits":
        sys.exit("bye")
    return {"right": right, "none": None, "text": "text"}[how]


@dataclass(frozen=True, kw_only=True)
class Term(Objective):
    how: str = "right"
    def __call__(self, model, batch, context):
        return answer(self.how, Values(-model.log_prob(batch, context.randomness)))


@dataclass(frozen=True, kw_only=True)
class Odd(Objective):
    how: str = "right"
    def __call__(self, model, batch, context):
        values = -model.log_prob(batch, context.randomness)
        if self.how == "iterator":
            next(iter([]))
        if self.how == "reference":
            with torch.no_grad():
                next(context.reference().parameters()).mul_(1.5)
        if self.how == "diagnostics":
            return Values(values, None)
        return Values(values.to("meta") if self.how == "device" else values)


@dataclass(frozen=True, kw_only=True)
class Penalty(ParameterObjective):
    how: str = "right"
    def penalty(self, parameters, context):
        return answer(self.how, sum(value.square().sum() for value in parameters.values()))


@dataclass(frozen=True, kw_only=True)
class Weighted(Term):
    def __call__(self, model, batch, context):
        return Values(-model.log_prob(batch, context.randomness))
    def sample_weight(self, batch):
        return answer(self.how, torch.ones(len(batch["id"])))


@dataclass(frozen=True, kw_only=True)
class Whole(Weighted):
    over_batch = True
    def sample_weight(self, batch):
        return torch.ones(len(batch["id"]))
    def reduce(self, values, weights):
        return answer(self.how, values.mean())


@dataclass(frozen=True)
class Rule(Combination):
    how: str = "right"
    def __call__(self, forget, retain, state, samples=()):
        return answer(self.how)


@dataclass(frozen=True)
class Removes(Rule):
    def __call__(self, forget, retain, state, samples=()):
        retain[0] = None


@dataclass(frozen=True)
class Returns(Rule):
    def __call__(self, forget, retain, state, samples=()):
        return [f + r for f, r in zip(forget, retain)]


@dataclass(frozen=True)
class Chosen(All):
    how: str = "right"
    def select(self, model):
        return answer(self.how, super().select(model))


@dataclass(frozen=True)
class Masked(All):
    how: str = "right"
    needs_gradient = True
    def masks(self, gradients):
        return answer(self.how, {name: value > 0 for name, value in gradients.items()})


@dataclass(frozen=True)
class Change(Edit):
    how: str = "right"
    def __call__(self, target, train, splits):
        return answer(self.how, target)


@dataclass(frozen=True)
class Around(Guard):
    how: str = "right"
    def __call__(self, model, splits):
        return answer(self.how, model)


@dataclass(frozen=True)
class Measure(Evaluator):
    how: str = "right"
    def __call__(self, evaluation):
        return answer(self.how, EvaluationResult())


@dataclass
class Loads(Digits):
    how: str = "right"
    def load(self):
        return answer(self.how, super().load())


class Broken(Dataset):
    def __init__(self, base, part):
        self.__dict__.update(base.__dict__)
        self.base, self.part = base, part
        if part == "labels":
            self.labels = list(range(len(base)))
        if part == "attributes":
            self.attributes = base.attributes[:3]
        if part == "is_test":
            self.is_test = base.is_test.long()
        if part == "fingerprint":
            del self.fingerprint
        if part == "info":
            self.info = [1, 8, 8]
        if part == "shape":
            self.info = {}

    def batch(self, ids):
        found = self.base.batch(ids)
        if self.part == "batch":
            return found["image"]
        if self.part == "id":
            del found["id"]
        if self.part == "ids":
            found["id"] = found["id"] + 1
        if self.part == "image":
            del found["image"]
        if self.part == "list":
            found["image"] = found["image"].tolist()
        return found


@dataclass
class Parts(Digits):
    part: str = ""
    def load(self):
        return Broken(super().load(), self.part)


@dataclass(frozen=True, kw_only=True)
class AtStart(Objective):
    def __post_init__(self):
        sys.exit(3)
    def __call__(self, model, batch, context):
        raise AssertionError
"""

RIGHT = ["evaluate=null", "gate=null", "optim.steps=2", "optim.batch=4", "pretrain.retrained=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("components")
    (made / "own_parts.py").write_text(MODULE)
    (made / "exits_at_import.py").write_text("import sys\nsys.exit(0)\n")
    return made


def asked(component: str, value: str) -> list[str]:
    """Return the settings that put a component into a recipe."""
    part, name = component.split("=")
    own = f"{{name: own_parts.{name}, {'part' if name == 'Parts' else 'how'}: {value}}}"
    settings = {
        "data": [f"data={{name: own_parts.{name}, forget: {{label: ['3']}}, {own.partition(', ')[2]}"],
        "evaluate": [f"evaluate={{mine: {own}}}"],
        "edit": ["forget=null", "retain=null", f"edit={own}"],
        "guard": ["forget=null", "retain=null", f"guard={own}"],
    }
    return settings.get(part, [f"{part}={own}"])


KINDS = [
    "forget=Term", "retain=Penalty", "forget=Weighted", "forget=Whole", "combine=Rule", "scope=Chosen", "scope=Masked",
    "edit=Change", "guard=Around", "data=Loads",
]  # fmt: skip


@pytest.mark.parametrize("component", KINDS)
def test_exits_and_wrong_kinds_are_one_sentence_in_check_and_in_a_run(component, folder, tmp_path):
    """The same sentence, exit code 2, in both, with the component's name; the right value passes."""
    name = component.split("=")[1]
    for how in ("exits", "none", "text"):
        if (component, how) == ("combine=Rule", "none"):
            continue  # a combination returns nothing
        said = set()
        for flags in (["--check"], ["output=run"]):
            done = unlearn("quickstart", *RIGHT, *asked(component, how), *flags, cwd=folder, cache=tmp_path)
            assert done.returncode == 2, (how, done.stderr)
            assert "Traceback" not in done.stderr and not (folder / "run").exists()
            said.add(done.stderr.strip().splitlines()[-1])
        assert len(said) == 1, said
        assert name in said.pop()
    done = unlearn("quickstart", *RIGHT, *asked(component, "right"), "--check", cwd=folder, cache=tmp_path)
    assert done.returncode == 0, done.stderr


PARTS = {
    "labels": "labels must be", "attributes": "attributes must be", "is_test": "is_test must be",
    "fingerprint": "has no 'fingerprint'", "info": "info is a list", "shape": "the shape of the data",
    "batch": "returned a Tensor", "id": "without their ids", "ids": "without their ids", "list": "'image' is a list",
    "image": "image",
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_dataset_that_is_not_as_promised_is_one_sentence(part, folder, tmp_path):
    for flags in (["--check"], ["output=run"]):
        done = unlearn("quickstart", *RIGHT, *asked("data=Parts", part), *flags, cwd=folder, cache=tmp_path)
        assert done.returncode == 2 and PARTS[part] in done.stderr, done.stderr
        assert not (folder / "run").exists()


def test_a_combination_that_returns_its_result_is_refused(folder, tmp_path):
    done = unlearn("quickstart", *RIGHT, "combine=own_parts.Returns", "--check", cwd=folder, cache=tmp_path)
    assert done.returncode == 2 and "own_parts.Returns" in done.stderr and "overwrite" in done.stderr
    done = unlearn("quickstart", *RIGHT, "combine=own_parts.Removes", "--check", cwd=folder, cache=tmp_path)
    assert done.returncode == 2 and "own_parts.Removes" in done.stderr and "shapes" in done.stderr


ODD = {
    "iterator": (1, "ended after 0 of 2"), "reference": (1, "changed the target model"),
    "diagnostics": (2, "diagnostics is a NoneType"), "device": (2, "is on meta"),
}  # fmt: skip


@pytest.mark.parametrize("how", ODD)
def test_an_objective_that_spoils_the_run_ends_it(how, folder, tmp_path):
    """An iterator that ran out ended the steps, and a changed reference the comparison, with exit code 0."""
    run = tmp_path / "run"
    done = unlearn("quickstart", *RIGHT, *asked("forget=Odd", how), f"output={run}", cwd=folder, cache=tmp_path)
    code, said = ODD[how]
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (run / "model").exists()


@pytest.mark.parametrize("settings", ["forget=exits_at_import.Any", "forget=own_parts.AtStart"])
def test_exits_before_any_work(settings, folder, tmp_path):
    done = unlearn("quickstart", settings, "--check", cwd=folder, cache=tmp_path)
    assert done.returncode == 2 and settings.split("=")[1].split(".")[0] in done.stderr


@pytest.mark.parametrize("how", ["exits", "none", "text"])
def test_an_evaluator_costs_its_own_figures_only(how, folder, tmp_path):
    """Exit code 1 at the end, with its name in a note."""
    run = tmp_path / "run"
    done = unlearn("quickstart", *RIGHT, *asked("evaluate=Measure", how), f"output={run}", cwd=folder, cache=tmp_path)
    assert done.returncode == 1 and "mine: failed" in done.stderr, done.stderr
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("data", ["identities", "factbook"])
def test_data_of_another_family(data, tmp_path):
    """A flow has no shape to be built for (was: KeyError)."""
    settings = [f"data={data}", "data.forget.ids=[0]", *RIGHT]
    done = unlearn("quickstart", *settings, "--check", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 2 and "the shape of the data" in done.stderr, done.stderr
