"""What the documents say holds: their examples run, their names and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.toys import ROOT
from tests.toys.command import unlearn
from unlearn.config import packaged, registry
from unlearn.config.recipe import load

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text()
COMPONENTS = (ROOT / "docs" / "components.md").read_text()
PAPERS = (ROOT / "docs" / "papers.md").read_text()


def examples() -> dict[str, str]:
    """Return the README's files: a block under a line that starts with a file name."""
    return dict(re.findall(r"^`([\w.]+)`[^\n]*:\n\n```\w+\n(.*?)^```", README, re.MULTILINE | re.DOTALL))


def commands() -> list[list[str]]:
    """Return the arguments of every call of the command line in the README's blocks."""
    lines = re.findall(r"^python -m unlearn\.run\b([^\n#]*)", README, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("recipe", ["fading.yaml", "pixels.yaml"])
def test_the_readmes_examples_run(recipe: str, tmp_path: Path) -> None:
    for name, text in examples().items():
        (tmp_path / name).write_text(text)
    short = [
        "optim.steps=3",
        "pretrain.optim.steps=3",
        "evaluate.feature_distance=null",
        "evaluate.sample_share.samples=50",
        "output=out",
    ]
    result = unlearn(f"recipe={recipe}", *short, "gate=null", "output=out", cwd=tmp_path, cache=tmp_path / "cache")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out" / "metrics.json").is_file()


def test_the_examples_are_found() -> None:
    assert set(examples()) == {"fading_ascent.py", "fading.yaml", "pixel_gaussian.py", "pixels.yaml"}


def test_the_readmes_commands_are_accepted() -> None:
    found = [arguments for arguments in commands() if any(a.startswith("recipe=") for a in arguments)]
    assert len(found) >= 6
    for arguments in found:
        settings = [a for a in arguments if not a.startswith(("recipe=", "resume=", "--"))]
        (recipe,) = (a.removeprefix("recipe=") for a in arguments if a.startswith("recipe="))
        if recipe != "my_recipe.yaml":
            load(recipe, settings)
    call = re.search(r'recipe="([^"]+)", \*\*\{"([^"]+)": ([^}]+)\}', README)
    assert call is not None
    load(call[1], [f"{call[2]}={call[3]}"])


def listed(kind: str) -> set[str]:
    """Return the names in code type under a kind's heading on the page of components."""
    _, _, section = COMPONENTS.partition(f"\n## {kind}\n")
    return set(re.findall(r"`(\w+)`", section.partition("\n## ")[0]))


@pytest.mark.parametrize("kind", registry.COMPONENTS)
def test_the_page_of_components_names_every_one(kind: str) -> None:
    assert listed(kind) == set(registry.COMPONENTS[kind])


PATH = re.compile(r"`((?:unlearn|models|objectives|evaluators|recipes|tests)/[\w./-]*\w/?)`")
MODULE = re.compile(r"\bunlearn(?:\.[a-z_0-9]+)+")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_modules_exist(document: Path) -> None:
    """A path in code type is a file or folder of the repository, and a dotted name leads to a module."""
    text = document.read_text()
    lost = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    for name in set(MODULE.findall(text)):
        parts = name.split(".")[1:]
        place = ROOT if parts[0] in ("models", "objectives", "evaluators") else ROOT / "unlearn"
        file = place.joinpath(*parts)
        known = file.is_dir() or file.with_suffix(".py").is_file()
        inside = file.parent.is_dir() or file.parent.with_suffix(".py").is_file()  # module.attribute
        if not known and not (inside and len(parts) > 1) and parts[0] not in ("unlearn", *registry.COMPONENTS):
            lost.append(name)
    assert not lost


def test_the_paper_index_is_complete() -> None:
    for path in (ROOT / "objectives").rglob("*.py"):
        cited = set(re.findall(r"arXiv:(\d{4}\.\d{5})", path.read_text()))
        assert cited <= set(re.findall(r"arXiv:(\d{4}\.\d{5})", PAPERS)), path
    for name in registry.COMPONENTS["objective"] | registry.COMPONENTS["combination"]:
        assert f"`{name}`" in PAPERS, name
    for name in packaged.names("recipe"):
        assert f"`{name}`" in PAPERS, name
    for file in re.findall(r"`([\w/]+\.py)`", PAPERS):
        assert (ROOT / file).is_file(), file


def test_links_and_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text()
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
        assert set(re.findall(r"`make ([a-z]+)", text)) <= targets, document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_unbroken(document: Path) -> None:
    """A row that an empty line cuts off from its table, or that has other columns than its heading, prints as text."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)]
    for heading, *rest in blocks:
        assert rest and re.fullmatch(r"(\|\s*:?-+:?\s*)+\|", rest[0]), f"no table begins with: {heading[:80]}"
        columns = len(cells(heading))
        for row in rest:
            assert len(cells(row)) == columns, f"not {columns} cells: {row[:80]}"


def cells(row: str) -> list[str]:
    """Return the cells of a table's row; an escaped bar is no border."""
    return re.split(r"(?<!\\)\|", row.strip())[1:-1]
