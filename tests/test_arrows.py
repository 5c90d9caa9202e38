"""Who imports whom: models know nothing of objectives and evaluators, and objectives nothing of evaluators."""

import ast
from pathlib import Path

import pytest

from tests.toys import ROOT

FORBIDDEN = {
    "models": ("unlearn.objectives", "unlearn.evaluators", "unlearn.run"),
    "objectives": ("unlearn.evaluators", "unlearn.run", "lightning"),
    "evaluators": ("unlearn.run", "lightning"),
    "unlearn/data": ("unlearn.models", "unlearn.objectives", "unlearn.evaluators", "unlearn.run"),
}


def imported(file: Path) -> set[str]:
    """Return the modules that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_point_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    wrong = [
        (str(file.relative_to(ROOT)), module)
        for file in files
        for module in imported(file)
        if any(module == name or module.startswith(f"{name}.") for name in FORBIDDEN[folder])
    ]
    assert files and not wrong
