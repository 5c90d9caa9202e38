"""Damaged and changed files of a run folder: every command ends with one message and exit code 2, or does its work."""

import contextlib
import io
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import ROOT
from unlearn.compare import main as compare
from unlearn.delta import main as delta
from unlearn.evaluate import main as evaluate
from unlearn.run import main as run

ROUNDS = int(os.environ.get("UNLEARN_FUZZ", "1"))
SMALL = [
    f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}", "pretrain.retrained=false", "optim.steps=4",
    "pretrain.optim.steps=2", "evaluate={cost: {}}", "trainer.checkpoint_every=2", "optim.batch=4",
]  # fmt: skip
JUNK: list[Any] = [
    None, True, False, 0, -1, 3, 2**40, 10**30, 1e308, math.nan, math.inf, -math.inf, "", "x", "../x", "/etc/passwd",
    "../../../../etc", "\x1b[2J", "\ud800", "x" * 5000, [], [[]], [None], {}, {"a": {"b": []}}, {"name": ["x"]},
    ["../x"], "os:path", "json.JSONDecoder",
]  # fmt: skip
TENSORS: list[Any] = [torch.zeros(3), torch.full((2, 2), math.nan), torch.zeros(0), torch.ones(1, dtype=torch.int64)]


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value below a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in list(pairs) for place in [(tree, key), *places(value)]]


def changed(tree: Any, chance: random.Random, junk: list[Any]) -> Any:
    """Drop, replace or move a value of a tree."""
    if chance.random() < 0.05 or not (found := places(tree)):
        return chance.choice(junk)
    container, key = chance.choice(found)
    if chance.random() < 0.3:
        del container[key]
    elif chance.random() < 0.2:
        container[key] = deepcopy(chance.choice(found)[0])
    else:
        container[key] = chance.choice(junk)
    return tree


def torn(content: bytes, chance: random.Random) -> bytes:
    """Cut, flip or insert bytes."""
    at = chance.randrange(len(content) + 1)
    return chance.choice(
        [content[:at], b"", content[:at] + b"\xff\x00" + content[at:], content[at:], b"[" * 5000, b"\xff\xfe" + content]
    )


def damage(path: Path, chance: random.Random) -> None:
    """Change one file."""
    if chance.random() < 0.3:
        path.write_bytes(torn(path.read_bytes(), chance))
    elif path.suffix == ".json":
        tree = json.loads(path.read_text())
        for _ in range(chance.choice([1, 1, 3])):
            tree = changed(tree, chance, JUNK)
        with contextlib.suppress(ValueError, RecursionError):  # a tree that holds itself
            path.write_text(json.dumps(tree))
    elif path.suffix == ".ckpt":
        tree = torch.load(path, weights_only=True)
        tree = changed(tree, chance, [*JUNK[:-2], *TENSORS])
        with contextlib.suppress(ValueError, RecursionError):
            torch.save(tree, path)
    elif path.suffix in (".csv", ".yaml", ".txt"):
        lines = path.read_text().splitlines()
        number = chance.randrange(len(lines))
        lines[number] = chance.choice(
            ["", "a: [", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p", "nan," * 9, '"', "&a [*a]", "- x"]
        )
        path.write_text("\n".join(lines))
    else:
        path.write_bytes(torn(path.read_bytes(), chance))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(folder / "cache"))
        assert run([*SMALL, f"output={folder / 'run'}"]) == 0
        assert delta(["save", str(folder / "run"), str(folder / "change.safetensors")]) == 0
    return folder


def unfinish(folder: Path, chance: random.Random) -> None:
    """Put a run back to where its steps, or its measurements, had not ended."""
    status = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**status, "status": "running"}))
    if chance.random() < 0.7:
        (folder / "checkpoints" / "outcome.ckpt").unlink()
    if chance.random() < 0.5:
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        torch.save({**state, "step": 2}, folder / "checkpoints" / "last.ckpt")


def said(main: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, err.getvalue()


COMMANDS: dict[str, tuple[Callable[[list[str]], int], Callable[[Path], list[str]]]] = {
    "resume": (run, lambda at: [f"resume={at}"]),
    "evaluate": (evaluate, lambda at: [str(at), "evaluate.cost={}"]),
    "compare": (compare, lambda at: [str(at), "--output", str(at / "out")]),
    "save": (delta, lambda at: ["save", str(at), str(at / "new.safetensors")]),
}
FILES = {
    "resume": ["run.json", "recipe.yaml", *["last.ckpt", "outcome.ckpt"] * 2, "metrics.csv", "config.json"],
    "evaluate": ["run.json", "recipe.yaml", "metrics.json", "outcome.ckpt", "metrics.csv", "environment.json"],
    "compare": [*["metrics.json"] * 3, "recipe.yaml", "metrics.csv", "environment.json", "command.txt"],
    "save": ["run.json", "recipe.yaml", "config.json", "weights.safetensors"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_run_folder_is_one_message(name, finished, tmp_path, monkeypatch):
    """No traceback, nothing beside the folder; a run whose damage does no harm ends as ever."""
    monkeypatch.setenv("UNLEARN_CACHE", str(finished / "cache"))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(f"{name} {ROUNDS}")
    main, arguments = COMMANDS[name]
    number = (5 if name in ("resume", "evaluate") else 12) * ROUNDS
    codes = []
    for _ in range(number):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(finished / "run", tmp_path / "run")
        if name == "resume":
            unfinish(tmp_path / "run", chance)
        wanted = chance.choice(FILES[name])
        found = [path for path in (tmp_path / "run").rglob("*") if path.name == wanted]
        for path in found[:1]:
            before = path.read_bytes()
            damage(path, chance)
        code, text = said(main, arguments(tmp_path / "run"))
        codes.append(code)
        shown = f"{path.name}: {before[:300]!r} -> {path.read_bytes()[:2000]!r}" if found and path.exists() else ""
        assert "Traceback" not in text, f"{shown}\n{text}"
        assert code in (0, 2), f"{shown}\n{code} {text}"
        assert code == 0 or len(text.strip().splitlines()[-1]) > 20, shown
        assert {path.name for path in tmp_path.iterdir()} <= {"run"}
    assert 2 in codes


PICTURE = {"name": "x", "title": "t", "caption": "c", "evaluator": ["x"]}
EDITS = {
    "a number too large": (lambda content: content["records"][0].update(value=10**400), 2),
    "an interval too wide to draw": (lambda content: content["records"][0].update(ci95=[-1e308, 1e308]), 0),
    "a duration of text": (lambda content: content.update(seconds={"evaluation": "x"}), 2),
    "a key of another kind": (lambda content: content.update(pictures=[PICTURE]), 2),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_value_is_refused_or_shown(name, finished, tmp_path, monkeypatch):
    """Each was a traceback; curves from -1e308 to 1e308, and of an infinite step, are drawn without those points."""
    monkeypatch.setenv("UNLEARN_CACHE", str(finished / "cache"))
    run_folder = shutil.copytree(finished / "run", tmp_path / "run")
    content = json.loads((run_folder / "metrics.json").read_text())
    change, code = EDITS[name]
    change(content)
    (run_folder / "metrics.json").write_text(json.dumps(content))
    (run_folder / "metrics.csv").write_text("step,loss\n0,1e308\n1,-1e308\n1e400,1\n")
    found, text = said(evaluate, [str(run_folder), "evaluate.cost={}"])
    assert found == code and "Traceback" not in text, text
