"""What is shipped: the wheel's files, and the same command from every way to install it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import unlearn
from tests.toys import ROOT
from unlearn.core.errors import RecipeError
from unlearn.data.mnist import Mnist

LINKED = ("models", "objectives", "evaluators", "recipes")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAPERS = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
BUILD_FILES = ("pyproject.toml", "MANIFEST.in", "constraints.txt", *PAPERS)

IMPORT = "import importlib, sys; print(*(importlib.import_module(n).__file__ for n in sys.argv[1:]), sep='\\n')"
FIND = "import importlib.util as u, sys; print(*(u.find_spec(n).origin for n in sys.argv[1:]), sep='\\n')"


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with no more of the environment than it needs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**kept, **env}, capture_output=True, text=True, timeout=300
    )


def ran(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    result = run(*command, cwd=cwd, **env)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def is_source(path: Path) -> bool:
    """Whether a path belongs to the project: no cache, no hidden file."""
    return not any(part == "__pycache__" or part.startswith(".") for part in path.parts)


def expected_files(tree: Path) -> set[str]:
    """Return what the wheel must hold: every file of the five folders, under unlearn/."""
    found = set()
    for folder in ("unlearn", *LINKED):
        for path in (tree / folder).rglob("*"):  # does not follow the links
            inside = path.relative_to(tree)
            if path.is_file() and is_source(inside):
                found.add(str(inside if folder == "unlearn" else Path("unlearn") / inside))
    return found


def modules() -> list[str]:
    """Return the name of every module of the package."""
    paths = (Path(name).with_suffix("") for name in expected_files(ROOT) if name.endswith(".py"))
    return sorted({".".join(path.parent.parts if path.name == "__init__" else path.parts) for path in paths})


def wheel_files(wheel: Path) -> set[str]:
    """Return the names in a wheel, its metadata left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def copy_tree(target: Path, links: bool = True) -> Path:
    """Copy what is built from, as git writes it with or without links, and a tests/ folder that must not be shipped."""
    target.mkdir(parents=True)
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, target)
    for folder in ("unlearn", *LINKED):
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignore)
    (target / "tests").mkdir()
    (target / "tests" / "test_nothing.py").touch()
    if not links:
        for folder in LINKED:
            (target / "unlearn" / folder).unlink()
            (target / "unlearn" / folder).write_text(f"../{folder}")
    return target


def build(tree: Path, *what: str) -> list[Path]:
    """Build in a copy of the tree, offline; return the files made."""
    ran(sys.executable, "-m", "build", "--no-isolation", *what, cwd=tree)
    return sorted((tree / "dist").iterdir())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    return copy_tree(tmp_path_factory.mktemp("checkout") / "unlearnkit")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    (path,) = build(copy_tree(tmp_path_factory.mktemp("wheel") / "unlearnkit"), "--wheel")
    return path


@pytest.fixture(scope="module")
def sdist_and_wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel built from it (what `build` does by default)."""
    sdist, made = sorted(build(copy_tree(tmp_path_factory.mktemp("sdist") / "unlearnkit")), key=lambda p: p.suffix)
    return sdist, made


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A research folder with packages of its own called as ours, each of which tells when it is imported."""
    folder = tmp_path / "research"
    for name in LINKED:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('imported the user\\'s {name}')\n")
    return folder


def environment(folder: Path, *install: str | Path) -> Path:
    """Make an environment that sees this one's packages, install into it offline, and return its interpreter."""
    ran(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = ran(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(site) / "here.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--ignore-installed")
    ran(*pip, "--no-index", "--no-deps", "--no-build-isolation", *install, cwd=folder)
    return python


def test_wheel_holds_every_file_of_the_five_folders_and_nothing_else(wheel: Path) -> None:
    assert wheel_files(wheel) == expected_files(ROOT)


def test_wheel_from_the_sdist_is_the_same(wheel: Path, sdist_and_wheel: tuple[Path, Path]) -> None:
    sdist, second = sdist_and_wheel
    assert wheel_files(second) == wheel_files(wheel)
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or "/tests/" in member.name]
    assert {Path(member.name).name for member in members} >= set(BUILD_FILES)


def test_a_checkout_without_links_builds_a_wheel_that_the_rule_refuses(tmp_path: Path) -> None:
    """The control: such a wheel is built without complaint and lacks all models."""
    (made,) = build(copy_tree(tmp_path / "unlearnkit", links=False), "--wheel")
    missing = expected_files(ROOT) - wheel_files(made)
    assert "unlearn/models/base.py" in missing and "unlearn/core/errors.py" not in missing


def test_every_asset_has_a_card(wheel: Path) -> None:
    folders = {name.split("/")[2] for name in wheel_files(wheel) if name.startswith("unlearn/assets/")}
    assert folders and all(f"unlearn/assets/{folder}/README.md" in wheel_files(wheel) for folder in folders)


def test_packaged_models_are_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = [item.file_size for item in archive.infolist() if item.filename.startswith("unlearn/assets/")]
    assert sizes and max(sizes) <= 5_000_000 and sum(sizes) <= 40_000_000


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{folder}/METADATA").decode()
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
        licence = archive.read(f"{folder}/licenses/LICENSE").decode()
        weights = {name for name in archive.namelist() if name.startswith(f"{folder}/licenses/unlearn/assets/")}
    assert f"\nName: unlearnkit\nVersion: {unlearn.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0 AND MIT\n" in metadata and "Version 2.0, January 2004" in licence
    bundled = sorted(path.parent.name for path in (ROOT / "unlearn" / "assets").glob("*/LICENSE*"))
    assert sorted(Path(name).parent.name for name in weights) == bundled and "dlib_face" in bundled
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "unlearn = unlearn.run:main" in scripts


@pytest.mark.parametrize("how", ["wheel", "sdist", "editable"])
def test_installed_command_beside_the_users_own_models(
    how: str, tree: Path, wheel: Path, sdist_and_wheel: tuple[Path, Path], poisoned: Path, tmp_path: Path
) -> None:
    source: tuple[str | Path, ...] = {
        "wheel": (wheel,),
        "sdist": (sdist_and_wheel[0],),
        "editable": ("--editable", tree),
    }[how]
    python = environment(tmp_path / "env", *source)
    home = tree if how == "editable" else tmp_path / "env"

    files = ran(python, "-c", FIND, *modules(), cwd=poisoned).splitlines()
    assert len(files) == len(modules()) and all(Path(file).is_relative_to(home) for file in files)
    listing = ran(python, "-m", "unlearn.run", cwd=poisoned)
    assert "quickstart" in listing
    assert ran(python.parent / "unlearn", cwd=poisoned) == listing
    assert "imported the user's models" in run(python, "-c", "import models", cwd=poisoned).stderr  # the control


@pytest.mark.parametrize("links", [True, False])
def test_checkout_runs_without_an_install(links: bool, tree: Path, poisoned: Path, tmp_path: Path) -> None:
    checkout = tree if links else copy_tree(tmp_path / "unlearnkit", links=False)
    for folder in (checkout, poisoned):
        listing = ran(sys.executable, "-m", "unlearn.run", cwd=folder, PYTHONPATH=str(checkout))
        assert "quickstart" in listing
    files = ran(sys.executable, "-c", FIND, *modules(), cwd=poisoned, PYTHONPATH=str(checkout)).splitlines()
    assert len(files) == len(modules()) and all(Path(file).is_relative_to(checkout) for file in files)


def test_every_module_is_imported_beside_the_users_own_models(wheel: Path, poisoned: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheel)
    files = ran(python, "-c", IMPORT, *modules(), cwd=poisoned).splitlines()
    assert len(files) == len(modules()) and all(Path(file).is_relative_to(tmp_path) for file in files)


@pytest.mark.parametrize("name", LINKED)
def test_a_linked_package_refuses_its_bare_name(name: str) -> None:
    result = run(sys.executable, "-c", f"import {name}", cwd=ROOT)
    assert f"ImportError: import unlearn.{name}, not {name}" in result.stderr


def pins() -> dict[str, Version]:
    """Return constraints.txt as canonical name -> version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}
    assert len(found) == len(lines)
    return found


def unpinned(names: dict[str, Version]) -> set[str]:
    """Return what the project needs, directly or through others, that has no pin, or one outside of what is asked.

    What a package pins exactly (torch its CUDA parts) needs no second pin. A package that is not installed here
    (another platform's) cannot be followed further.
    """
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(text for name in extras for text in extras[name])]
    waiting = [wanted for text in asked if (wanted := Requirement(text)).name != PROJECT["name"]]  # not its own extras
    seen, found = set(), set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name not in names or not wanted.specifier.contains(names[name], prereleases=True):
            found.add(str(wanted))
        if (name, *sorted(wanted.extras)) in seen:
            continue
        seen.add((name, *sorted(wanted.extras)))
        try:
            needs = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        for need in needs:
            applies = need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *wanted.extras))
            if applies and "==" not in {part.operator for part in need.specifier}:
                waiting.append(need)
    return found


def test_every_package_is_pinned_within_what_is_asked() -> None:
    assert unpinned(pins()) == set()
    assert pins()["torch"].local is None  # a machine's own build of that version, for CPU or CUDA, satisfies it


def test_a_missing_or_wrong_pin_is_seen() -> None:
    """The control: drop an indirect requirement, and set a direct one too low."""
    wrong = {name: version for name, version in pins().items() if name != "aiohttp"} | {"omegaconf": Version("2.3.0")}
    assert {Requirement(text).name for text in unpinned(wrong)} == {"aiohttp", "omegaconf"}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout."""
    return run("make", *arguments, cwd=ROOT)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_names_the_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3.9\nexit 1\n")
    old.chmod(0o755)
    for python, said in ((old, "3.9"), (tmp_path / "none", "not there")):
        result = make("demo", f"PYTHON={python}", f"VENV={tmp_path / 'env'}")
        assert result.returncode != 0
        assert f"Python 3.11 or later is needed; {python} is {said}. Name another: make demo PYTHON=" in result.stderr
        assert not (tmp_path / "env").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_installs_what_is_pinned_and_only_once(tmp_path: Path) -> None:
    """The steps of both commands, not carried out: install, then run; without the install where it is done."""
    for target, runs in (("demo", "-m unlearn.run recipe=quickstart"), ("test", "-m pytest -n 2")):
        fresh = make("-n", target, f"VENV={tmp_path / 'env'}").stdout
        assert fresh.index("-m venv") < fresh.index("pip install -c constraints.txt -e") < fresh.index(runs)
    (tmp_path / "env" / "bin").mkdir(parents=True)
    for done in ("bin/pip", ".ready", ".ready-dev"):
        (tmp_path / "env" / done).touch()
    again = make("-n", "demo", f"VENV={tmp_path / 'env'}").stdout
    assert "pip install" not in again and "-m unlearn.run recipe=quickstart" in again


def test_the_python_entry_is_listed_before_it_is_loaded() -> None:
    listed = ran(sys.executable, "-c", "import unlearn, sys; print(*dir(unlearn), 'torch' in sys.modules)", cwd=ROOT)
    assert {"unlearn", "Result", "__version__", "False"} <= set(listed.split())


def test_mnist_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn.data.mnist.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=re.escape("unlearnkit[mnist]")):
        Mnist().load()


def test_documents_agree_on_the_version() -> None:
    assert re.search(rf"^## {re.escape(unlearn.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert f"\nversion: {unlearn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
