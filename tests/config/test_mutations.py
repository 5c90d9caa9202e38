"""Two thousand damaged recipes: each gives a recipe or one clear message, never another exception, and never hangs."""

import random
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from unlearn.config import packaged
from unlearn.config.recipe import load
from unlearn.config.yaml_io import dump
from unlearn.core.errors import RecipeError

RECIPES = 2000
SECONDS_EACH = 5.0
SECONDS = 40.0

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 10**30, -(10**400), 1e-4, 1e308, float("inf"), float("nan"), "", " ",
    "no", "yes", "1:30",
    "012", "0x10", "1_000", "null", "~", "???", "${", "${}", "$${x}", "${optim.lr}", "${seed}", "${forget}",
    "${a.b.c}", "\\${x}",
    "naïve café", "数字", "\U0001f600", "\u202eabc", "\x07", "a\nb", "x" * 5000, "a.b", "a..b", ".", ":", "os:path",
    "json.JSONDecoder",
    "nowhere.Nothing", "unlearn.data.base:Source", "unlearn.config.schema:Optim", "glow", "digits", "taming", "pcgrad",
    "cost", "quickstart",
    "../x", "a/" * 40 + "a", "1e400", "sys:exit", ["x"] * 50, -1.0, 2**62, 1e-320, "y" * 250,
    [], [[]], [None], ["3"], [1, 2.5, "x", None, True], [["a"], {"b": 1}], {}, {"name": "x"}, {"name": None}, {"a":
    {"b": {"c": 1}}},
    {"": 1}, {None: 1}, {1: 2}, {"name": ["x"]}, object(), b"bytes", {1, 2}, (1, 2), 1j,
]  # fmt: skip
KEYS = [
    "name",
    "lr",
    "weight",
    "base",
    "forget",
    "retain",
    "label",
    "seed",
    "optim",
    "x.y",
    "naïve",
    "<<",
    "output",
    "metric",
    "gate",
]
PATHS = [
    "optim.lr",
    "forget.weight",
    "data.forget.label",
    "seed",
    "evaluate.cost",
    "gate.x",
    "model",
    "combine.name",
    "..",
    "a",
]


def places(tree: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value below a tree, which may hold itself."""
    found = []
    for key, value in list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)):
        found.append((tree, key))
        if isinstance(value, (dict, list)) and depth < 5:
            found += places(value, depth + 1)
    return found


def mutate(tree: dict[str, Any], chance: random.Random) -> None:
    """Drop, rename, move, replace, nest, wrap or close a circle, in place."""
    container, key = chance.choice(places(tree))
    other, other_key = chance.choice(places(tree))
    kind = chance.choice(
        ["drop", "rename", "move", "replace", "replace", "replace", "nest", "wrap", "circle", "add", "typo"]
    )
    if kind == "drop":
        del container[key]
    elif kind == "move":
        other[other_key] = container[key] if other is not container[key] else 1
    elif kind == "replace":
        container[key] = deepcopy(chance.choice(JUNK))
    elif kind == "nest":
        for _ in range(chance.choice([1, 3, 40])):
            container[key] = {chance.choice(KEYS): container[key]}
    elif kind == "wrap":
        container[key] = [container[key]] * chance.choice([1, 2, 100])
    elif kind == "circle":
        container[key] = chance.choice([tree, container])
    elif isinstance(container, dict):
        name = chance.choice(KEYS) if kind != "typo" else f"{key}{chance.choice('sx_.')}"
        container[name] = container.pop(key) if kind != "add" else deepcopy(chance.choice(JUNK))


def scribble(text: str, chance: random.Random) -> str:
    """Delete, repeat or insert a few characters or lines of a file."""
    for _ in range(chance.choice([1, 2, 5])):
        at, length = chance.randrange(len(text) + 1), chance.choice([1, 3, 30])
        piece = chance.choice(
            ["", text[at : at + length] * 2, *"&*!|>%@`[]{}:,#?-'\"\t\n\0", "&a [*a]", "\ud800", "<<: ", "--- "]
        )
        text = text[:at] + piece + text[at + length * chance.randint(0, 1) :]
    return text


def cases(folder: Path) -> list[tuple[Any, list[str]]]:
    """Return recipes (mappings and files) with arguments, all from one seed."""
    quick = load("quickstart", ["gate.a={metric: bits_per_dim, max: 2}", "seed=[0,1]", "output=null"]).tree
    others = [load(name).tree for name in packaged.names("recipe")[::8]]
    chance = random.Random(0)
    found: list[tuple[Any, list[str]]] = []
    for number in range(RECIPES):
        tree = deepcopy(quick if number % 2 else others[number // 2 % len(others)])
        arguments = []
        if number % 3 == 0:
            path = folder / f"{number}.yaml"
            path.write_text(scribble(dump(tree), chance), encoding="utf-8", errors="surrogatepass")
            found.append((path, []))
            continue
        for _ in range(chance.choice([0, 1, 1, 1, 2, 4])):
            mutate(tree, chance)
        for _ in range(chance.choice([0, 0, 1, 2])):
            arguments.append(f"{chance.choice(PATHS)}{chance.choice(['=', '=', '=', '', '.x='])}{chance.choice(JUNK)}")
        found.append((tree, arguments))
    return found


def outcome(call: Callable[[], Any]) -> str:
    """Return loaded, refused, or the name of the exception that should not have come out."""
    try:
        call()
    except RecipeError as error:
        return "refused" if str(error).strip() and len(str(error)) < 20_000 else "refused without a word"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def test_damaged_recipes_load_or_are_refused(tmp_path: Path) -> None:
    outcomes, slowest, start = Counter[str](), 0.0, time.process_time()
    for recipe, arguments in cases(tmp_path):
        before = time.process_time()
        outcomes[outcome(lambda recipe=recipe, arguments=arguments: load(recipe, arguments))] += 1
        slowest = max(slowest, time.process_time() - before)
    assert set(outcomes) == {"loaded", "refused"}, outcomes
    assert outcomes["refused"] > RECIPES / 2 and outcomes["loaded"] > RECIPES / 20, outcomes
    assert slowest < SECONDS_EACH
    assert time.process_time() - start < SECONDS


def test_a_foreign_exception_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a user's class that raises a KeyError is told from a refused recipe, and a sound one loads."""
    (tmp_path / "mutations_own.py").write_text(
        "from dataclasses import dataclass\nfrom unlearn.objectives.surgery import WeightedSum\n"
        "@dataclass(frozen=True)\nclass Crash(WeightedSum):\n"
        "    def __post_init__(self):\n        raise KeyError('x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert outcome(lambda: load("quickstart")) == "loaded"
    assert outcome(lambda: load("quickstart", ["combine=mutations_own:Crash"])) == "KeyError: 'x'"
    assert outcome(lambda: load("quickstart", ["combine=none"])) == "refused"
