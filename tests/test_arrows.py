"""Who imports whom: packages in one order, no circle, and a name means one thing.

``unlearn/models`` and its siblings are links; modules are known by the paths that they are imported by. Imports inside
functions and under TYPE_CHECKING count like all others.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.toys import ROOT

ORDER = (
    {"doors"},
    {"study"},
    {"experiment"},
    {"report", "training"},
    {"config"},
    {"objectives", "evaluators"},
    {"models"},
    {"data"},
    {"core"},
)
"""Packages from top to bottom; those of one layer do not import each other."""

DOORS = {"run", "evaluate", "compare", "delta", "api"}

LINKED = ("models", "objectives", "evaluators")

SHARED_NAMES = {
    "__init__": "every package has one",
    "__main__": "what python -m runs",
    "base": "what all of a package extend or share",
    "config": "the settings of a family's models; the package reads recipes",
    "wrapper": "the backend of a family",
    "serialization": "reading and writing the files of a family",
    "parameter_kinds": "kinds of parameters of a family",
    "memory": "the estimate of a family",
    "layers": "neural layers of a family",
    "recall": "what the models of a family recall of items",
    "membership": "membership inference, of texts and of likelihoods",
    "muse": "the benchmark: its data, and its metrics",
    "tofu": "the benchmark: its data, and its metrics",
    "traps": "copyright traps: planted in the data, and looked for in the model",
}
"""Module names that several packages have, with one meaning."""


def modules(root: Path) -> dict[str, Path]:
    """Return dotted name -> file of every module, the linked folders under the names that they are imported by."""
    own = [path for path in (root / "unlearn").rglob("*.py") if path.relative_to(root).parts[1] not in LINKED]
    found = {".".join(path.relative_to(root).with_suffix("").parts): path for path in own}
    for name in LINKED:
        for path in (root / name).rglob("*.py"):
            found[".".join(("unlearn", *path.relative_to(root).with_suffix("").parts))] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Return module -> modules of the project that it imports anywhere; with a module its packages are imported too."""
    arrows: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        for target in {name, *found}:
            parts = target.split(".")
            found |= {".".join(parts[:length]) for length in range(2, len(parts))}
        arrows[name] = {target for target in found if target in files and target not in {name, "unlearn"}}
    return arrows


def package(module: str) -> str:
    """Return the package of a module below ``unlearn``, or ``doors`` for the modules that stand at the top."""
    first = module.split(".")[1]
    return "doors" if first in DOORS else first


def upward(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports that go up, or across a layer; the lazy import in ``unlearn/__init__`` is left out."""
    layer = {name: number for number, packages in enumerate(ORDER) for name in packages}
    return [
        (source, target)
        for source, targets in arrows.items()
        for target in targets
        if source != "unlearn"
        and package(source) != package(target)
        and layer[package(source)] >= layer[package(target)]
    ]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return one circle of imports for each module that is on one, as the path that leads back to it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(arrows[module]):
                follow(target, [*path, module])
            done.add(module)

    for module in sorted(arrows):
        follow(module, [])
    return found


def test_arrows_go_down() -> None:
    arrows = graph(modules(ROOT))
    assert len(arrows) > 200 and {package(name) for name in arrows if "." in name} == set().union(*ORDER)
    assert not upward(arrows)


def test_there_is_no_circle() -> None:
    assert not circles(graph(modules(ROOT)))


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    """The control: an upward import inside a function, one under TYPE_CHECKING through a link, and a circle of two."""
    plant = {
        "unlearn/core/low.py": "def f():\n    from unlearn.training.high import g\n",
        "unlearn/training/high.py": "import unlearn.core.low\n",
        "models/flow/one.py": "if TYPE_CHECKING:\n    from unlearn.objectives import term\n",
        "objectives/term.py": "x = 1\n",
    }
    for name, text in plant.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arrows = graph(modules(tmp_path))
    assert set(upward(arrows)) == {
        ("unlearn.core.low", "unlearn.training.high"),
        ("unlearn.models.flow.one", "unlearn.objectives.term"),
    }
    assert circles(arrows) == [["unlearn.core.low", "unlearn.training.high", "unlearn.core.low"]]


@pytest.mark.parametrize("folder", ["objectives", "evaluators", "models"])
def test_only_the_engine_imports_lightning(folder: str) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py"))
    assert not re.search(r"^\s*(import|from) lightning", text, re.MULTILINE)


def test_a_module_name_means_one_thing() -> None:
    names = Counter(name.rpartition(".")[2] for name, path in modules(ROOT).items() if path.name != "__init__.py")
    assert {name for name, count in names.items() if count > 1} <= SHARED_NAMES.keys()


def test_a_public_class_name_means_one_thing() -> None:
    classes = Counter(
        node.name
        for path in modules(ROOT).values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in classes.items() if count > 1]
