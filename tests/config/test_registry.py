"""Names, plugins and a user's own classes, and what each wrong one is told."""

import importlib.metadata
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import pytest

from tests.toys import ROOT
from unlearn.config import registry
from unlearn.config.compatibility import capabilities_of, fits, protocols_of
from unlearn.config.recipe import load
from unlearn.core.errors import MANY, RecipeError, did_you_mean
from unlearn.models.capabilities import (
    Denoises,
    HasLikelihood,  # noqa: F401  named in quotes below
    Samples,
)
from unlearn.objectives.base import Objective

OWN = """
from dataclasses import dataclass
from unlearn.objectives.surgery import Combination

@dataclass(frozen=True)
class Mine(Combination):
    strength: float = 1.0
    def __call__(self, gradients, weights, state):
        return gradients

class Plain(Combination):
    def __call__(self, gradients, weights, state):
        return gradients

@dataclass(frozen=True)
class Unfinished(Combination):
    pass

@dataclass(frozen=True)
class Named(Mine):
    name: str = "x"

@dataclass
class Stranger:
    pass

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with classes of a user, good and bad ones."""
    (tmp_path / "registry_own.py").write_text(OWN)
    (tmp_path / "registry_broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "registry_syntax.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "registry_own"


@pytest.fixture
def plugin(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package that brings a combination called theirs, and tries to take the name sum."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[unlearn.combination]\ntheirs = {own}:Mine\nsum = {own}:Mine\n")
    registry._plugins.cache_clear()
    yield own
    monkeypatch.undo()
    registry._plugins.cache_clear()


@pytest.mark.parametrize("kind", registry.COMPONENTS)
def test_every_name_is_a_component_of_its_kind(kind: registry.Kind) -> None:
    module, _, attribute = registry.BASES[kind].partition(":")
    base = getattr(import_module(module), attribute)
    assert registry.names(kind)
    for name in registry.names(kind):
        cls = registry.resolve(kind, name)
        assert issubclass(cls, base) and is_dataclass(cls) and cls.__doc__
        assert registry.is_registered(kind, name)
        assert "name" not in {field.name for field in fields(cls)}


@pytest.mark.parametrize("kind", registry.COMPONENTS)
def test_a_near_name_is_suggested(kind: registry.Kind) -> None:
    name = registry.names(kind)[0]
    with pytest.raises(RecipeError, match=rf"there is no {kind} '{name}x'. Did you mean: .*\b{name}\b"):
        registry.resolve(kind, f"{name}x")
    with pytest.raises(RecipeError, match=r"'zzzzzz'. Allowed: .*package.module:Class"):
        registry.resolve(kind, "zzzzzz")


def test_of_many_names_only_the_nearest_are_listed() -> None:
    many = [f"task_{number}" for number in range(MANY + 1)]
    assert did_you_mean("zzzzzz", many[:-1]) == f"Allowed: {', '.join(sorted(many[:-1]))}."
    assert did_you_mean("zzzzzz", many) == f"Allowed: {MANY + 1:,} names."
    found = did_you_mean("tusk_7", many)
    assert found.startswith("Did you mean: task_7,") and found.count("task_") == 5 and found.endswith(" names.")


@pytest.mark.parametrize("name", ["{}:Mine", "{}.Mine"])
def test_a_users_own_class_goes_by_its_path(own: str, name: str) -> None:
    assert registry.resolve("combination", name.format(own)).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("registry_own:Plain", "is no dataclass; put @dataclass above it"),
        ("registry_own:Unfinished", "is abstract; it lacks __call__"),
        ("registry_own:Named", "a field called name"),
        ("registry_own:Stranger", "does not extend unlearn.objectives.surgery.Combination"),
        ("registry_own:number", "is no class but a int"),
        ("registry_own:Mime", "has no 'Mime'. Did you mean: Mine"),
        ("registry_broken:X", "importing registry_broken failed with ModuleNotFoundError: .*nowhere_to_be_found"),
        ("registry_syntax.X", "importing registry_syntax failed with SyntaxError"),
        ("registry_absent.X", "importing registry_absent failed with ModuleNotFoundError"),
        ("sum.", "there is no combination 'sum.'"),
        (".sum", "there is no combination"),
        ("a..b", "there is no combination"),
        ("", "there is no combination ''"),
        ("os.path:join()", "there is no combination"),
    ],
)
def test_what_is_no_component_is_refused(own: str, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        registry.resolve("combination", name)


def test_a_cause_inside_the_users_module_is_kept(own: str) -> None:
    with pytest.raises(RecipeError) as caught:
        registry.resolve("combination", "registry_broken:X")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_other_packages_bring_components_by_entry_points(plugin: str) -> None:
    assert "theirs" in registry.names("combination")
    assert registry.resolve("combination", "theirs").__name__ == "Mine"
    assert registry.target("combination", "sum") == registry.COMPONENTS["combination"]["sum"], "own names come first"


def test_without_the_package_its_name_is_unknown(own: str) -> None:
    registry._plugins.cache_clear()
    assert not importlib.metadata.entry_points(group="unlearn.combinations")
    with pytest.raises(RecipeError, match="there is no combination 'theirs'"):
        registry.target("combination", "theirs")


def test_names_are_listed_without_importing_what_is_behind_them() -> None:
    code = "import sys; from unlearn.config import registry; [registry.names(k) for k in registry.COMPONENTS]; "
    code += "assert 'torch' not in sys.modules and 'omegaconf' not in sys.modules; "
    code += "registry.resolve('objective', 'taming'); assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("kind", ["objective", "evaluator", "edit", "guard"])
def test_every_component_fits_a_model(kind: registry.Kind) -> None:
    """What a component asks for, methods and attributes, some packaged wrapper has: no recipe with it is refused."""
    wrappers = {registry.resolve("model", name).wrapper for name in registry.names("model")}
    for name in registry.names(kind):
        asked = protocols_of(registry.resolve(kind, name))
        assert any(all(fits(wrapper, protocol) for protocol in asked) for wrapper in wrappers), name


class Mixed(dict[str, int], Objective["HasLikelihood"]):  # type: ignore[type-arg]
    """Another generic base, and a name in quotes."""


class Also(Mixed, Objective[Samples]):
    """Asks for what its base asks for, and more."""


Bounded = TypeVar("Bounded", bound=Denoises)


class Bound(Objective[Bounded]):
    """Asks for the bound of its type variable."""


def test_capabilities_are_found_however_the_type_is_written() -> None:
    assert capabilities_of(Mixed) == ("likelihood",) and capabilities_of(Bound) == ("denoises",)
    assert capabilities_of(Also) == ("likelihood", "samples") and capabilities_of(Objective) == ()


@pytest.mark.parametrize("wrong", ["gate.kept.metric=nonsense", "gate.kept.evaluator=cost"])
def test_a_gate_on_a_figure_that_nothing_gives_is_refused_at_once(wrong: str) -> None:
    with pytest.raises(RecipeError, match=r"gate\.kept\.metric.*Allowed: "):
        load("quickstart", [wrong])
