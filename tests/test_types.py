"""Types that hold: a component says in its type what it asks of its model, and mypy finds what the model lacks."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.toys import ROOT
from unlearn.config import registry
from unlearn.config.compatibility import capabilities_of
from unlearn.data.base import Batch
from unlearn.models.capabilities import CAPABILITIES, HasLikelihood
from unlearn.objectives.base import Context, Objective, Values

COMPONENTS = """
from collections.abc import Mapping

from unlearn.data.base import Batch, Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.models.base import Wrapper
from unlearn.models.capabilities import Denoises, HasLikelihood
from unlearn.models.guards.base import Guard
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.edits.base import Edit, Train


class Own(Objective[HasLikelihood]):
    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        context.reference().{log_prob}(batch, context.randomness)
        return Values(model.{log_prob}(batch, context.randomness))


class Measure(Evaluator[HasLikelihood]):
    def __call__(self, evaluation: Evaluation[HasLikelihood]) -> EvaluationResult:
        for model in evaluation.models.values():
            model.{log_prob}(evaluation.batch("forget", evaluation.splits["forget"].ids), evaluation.randomness)
        return EvaluationResult()


class Change(Edit[Denoises]):
    def __call__(self, target: Denoises, train: Train, splits: Mapping[str, Split]) -> Denoises:
        target.{null}(2)
        return target


class Around(Guard[Denoises]):
    def __call__(self, model: Denoises, splits: Mapping[str, Split]) -> Wrapper:
        model.{null}(2)
        raise NotImplementedError
"""
"""One component of each kind, with places for the names of two methods of its model."""

BARE = """

class Bare(Objective):
    def __call__(self, model: HasLikelihood, batch: Batch, context: Context) -> Values:
        raise NotImplementedError


class BareMeasure(Evaluator):
    def __call__(self, evaluation: Evaluation[HasLikelihood]) -> EvaluationResult:
        raise NotImplementedError
"""
"""Components that do not say in their type what they ask for: their models would be anything."""


def test_a_misspelt_method_of_a_model_is_found(tmp_path: Path) -> None:
    """In an objective, its reference, an evaluator, an edit and a guard; the control is spelt rightly."""
    wrong, right = tmp_path / "wrong.py", tmp_path / "right.py"
    wrong.write_text(COMPONENTS.replace("{log_prob}", "log_probz").replace("{null}", "nul") + BARE)
    right.write_text(COMPONENTS.replace("{log_prob}", "log_prob").replace("{null}", "null"))
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--strict", wrong, right],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    ).stdout
    assert said.count('has no attribute "log_probz"') == 3 and said.count('has no attribute "nul"') == 2, said
    assert said.count("Missing type arguments for generic type") == 3, said
    assert "right.py" not in said, said


ASKED = {"model", "target", "teacher", "reference"}
"""Names of parameters that hold a model."""


@pytest.mark.parametrize("folder", ["objectives", "evaluators", "models/guards"])
def test_no_model_is_any(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{argument.lineno} {argument.arg}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if argument.arg in ASKED and isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Any"
    ]
    assert not found


@pytest.mark.parametrize("kind", ["objective", "edit", "guard"])
def test_what_a_class_asks_for_is_the_type_of_its_model(kind: registry.Kind) -> None:
    """The protocol in ``Objective[...]``, which a recipe is held to, is the one that ``__call__`` is written for."""
    for name in registry.names(kind):
        cls = registry.resolve(kind, name)
        hint = next(iter(cls.__call__.__annotations__.values()))
        protocol = getattr(sys.modules[cls.__call__.__module__], getattr(hint, "__name__", str(hint)))
        if isinstance(protocol, type):  # a term over parameters has no call of its own
            written = [key for key, wanted in CAPABILITIES.items() if wanted in protocol.__mro__]
            assert list(capabilities_of(cls)) == written, name


def test_a_class_without_a_type_argument_asks_for_what_its_call_takes() -> None:
    class Bare(Objective):  # type: ignore[type-arg]
        def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
            raise NotImplementedError

    class Anything(Objective):  # type: ignore[type-arg]
        def __call__(self, model: Any, batch: Batch, context: Context[Any]) -> Values:
            raise NotImplementedError

    assert capabilities_of(Bare) == ("likelihood",) and capabilities_of(Anything) == ()
