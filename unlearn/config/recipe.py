"""Loads a recipe, given by name, file or mapping: checks it and builds its components."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from unlearn.config import compose, registry
from unlearn.config.compatibility import check_declared, measured_by
from unlearn.config.compose import Given, Node, bare
from unlearn.config.interpolation import escape, interpolate
from unlearn.config.presets import settle
from unlearn.config.requests import Requests
from unlearn.config.schema import About, Corrupt, Distil, Gate, Pretrain, Recipe, Select, Trainer
from unlearn.config.single_request import one_request
from unlearn.config.structured import Built, build, convert
from unlearn.core.errors import RecipeError, did_you_mean, shorten
from unlearn.core.optim import Optim

CHOICE = ("settings", "tables")
"""Keys that a resolved recipe no longer has: see unlearn.config.presets."""

NOT_HASHED = ("name", "about", "output")
NOT_HASHED_IN_TRAINER = ("workers", "checkpoint_every", "tensorboard", "wandb")
"""Keys that do not affect the result: a run may be resumed with other values of them."""

_FIXED: dict[str, type[Optim | Trainer]] = {"optim": Optim, "trainer": Trainer}
_Builder = Callable[[str, Node], Built]
"""Builds a part from its key and its values."""
_DEFAULTS = {"combine": "sum", "scope": "all"}
LONGEST = 200
"""Most characters of a folder's name that every file system takes, with room for what a run adds."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", re.ASCII)


def load(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe with every component built.

    Args:
        recipe: name of a packaged recipe, path of a file that ends in .yaml, or the recipe itself; a mapping may
            inherit too, e.g. ``{"base": "quickstart", "optim": {"steps": 100}}``.
        overrides: settings ``key=value``, laid over the recipe one by one. Lists and mappings are written in YAML's
            flow style (``seed=[0,1,2]``); one value alone for a list is a list of one (``data.forget.label=5``).

    Raises:
        RecipeError: anything is wrong with it; the message names the key, what was given and what is allowed.
    """
    name, node = compose.read(recipe)
    node = interpolate(compose.unwrap(settle(compose.override(node, overrides))))
    for key in node:
        if key not in PARTS:
            raise _unknown(key, node[key])
    node.setdefault("name", Given(name, "default"))
    parts = {key: PARTS[key](key, _part(node, key)) for key in PARTS if key not in OPTIONAL or _part(node, key)}
    tree = {key: part.tree for key, part in parts.items()}
    values: dict[str, Any] = dict.fromkeys(OPTIONAL) | {key: part.value for key, part in parts.items()}
    distil, by = values.pop("distil") or (None, {})
    seeds = values.pop("seed")
    built = Recipe(
        **values,
        distil=distil,
        distil_by=by,
        seeds=seeds,
        tree=escape(tree),
        origins=dict(_origins(tree, node, ())),
        hash="",
    )
    _check(built)
    if built.requests and built.requests.at:
        built = one_request(built, built.requests.at)
    built.hash = _hash(built.tree)
    return built


def _unknown(key: str, part: Node) -> RecipeError:
    """Return the error for a part that no recipe has."""
    longer = [f"{name}.{key}" for name, cls in _FIXED.items() if key in {field.name for field in fields(cls)}]
    near = did_you_mean(key, [*PARTS, *CHOICE], longer)
    return RecipeError(f"a recipe has no part {shorten(key)}{compose.written(part)}. {near}")


def _check(recipe: Recipe) -> None:
    """Refuse parts that do not go together; give ``select`` its evaluator."""
    forget, edit = recipe.forget, recipe.edit
    if (forget and edit) or not (forget or edit or recipe.guard):
        what = "both a forget and an edit part; take one, and write null for the other" if edit else "no forget part"
        ways = "write forget=NAME, or edit=NAME, or guard=NAME alone or around one of them"
        raise RecipeError(f"the recipe has {what}; {ways}. {_allowed('objective')}")
    if recipe.combine.separate and forget and not recipe.retain:
        name = recipe.tree["combine"]["name"]
        raise RecipeError(f"combine={name} takes two gradients, and there is no retain part. Type combine=sum.")
    if recipe.guard and recipe.requests and recipe.requests.sequence:
        raise RecipeError(
            "requests.sequence: a guard is laid around a model once, not once per request. Type requests=null."
        )
    for name, gate in recipe.gate.items():
        measured_by(f"gate.{name}", gate.metric, gate.evaluator, recipe.evaluate)
        check_declared(f"gate.{name}", gate.metric, gate.evaluator, recipe.evaluate)
    if select := recipe.select:
        evaluator = measured_by("select", select.metric, select.evaluator, recipe.evaluate)
        if not evaluator:
            raise RecipeError(
                f"select.metric is {select.metric!r}; write select.metric=NAME and select.evaluator=ENTRY, an entry of "
                f"evaluate. Allowed: {', '.join(recipe.evaluate)}."
            )
        if select.limit and select.limit.evaluator not in ("", evaluator):
            raise RecipeError(
                f"select.limit.evaluator is {shorten(select.limit.evaluator)}, and one entry measures the figure and "
                f"its limit. Allowed: {evaluator}."
            )
        recipe.select = replace(select, evaluator=evaluator)
        recipe.tree["select"]["evaluator"] = evaluator  # a run that measures more later selects by the same entry


def _part(node: dict[str, Node], key: str) -> Node:
    """Return a part; if it is missing or null, an empty mapping, which stands for its defaults."""
    part = node.get(key, {})
    return {} if isinstance(part, Given) and part.value is None else part


def _settings(cls: type[Any]) -> _Builder:
    """Return the builder of a part with fixed settings."""
    return lambda key, node: build(cls, node, key)


def _one(kind: registry.Kind) -> _Builder:
    """Return the builder of a part that is one component."""
    return lambda key, node: _component(kind, node, key)


def _entries(build_entry: _Builder) -> _Builder:
    """Return the builder of a part that is a mapping of named entries."""

    def built(key: str, node: Node) -> Built:
        if not isinstance(node, dict):
            given = f"{shorten(bare(node))}{compose.written(node)}"
            raise RecipeError(f"{key} is {given}; it must be a mapping, such as {{name: {{}}}}.")
        entries = {name: build_entry(f"{key}.{name}", entry) for name, entry in node.items()}
        return Built({n: e.value for n, e in entries.items()}, {n: e.tree for n, e in entries.items()})

    return built


def _component(kind: registry.Kind, node: Node, key: str) -> Built:
    """Build one component from ``{name: ..., settings}``; without a name, the key of an entry is the name."""
    if isinstance(node, Given) and isinstance(node.value, str):
        node = {"name": node}
    if isinstance(node, Given):
        shown = shorten(bare(node))
        raise RecipeError(
            f"{key} is {shown}{compose.written(node)}; it must be a name or a mapping with one. {_allowed(kind)}"
        )
    implied = key.partition(".")[2]
    given = node.get("name", Given(implied or _DEFAULTS.get(key), ""))
    if not isinstance(given, Given) or not isinstance(given.value, str) or not given.value:
        what = "has no name" if bare(given) is None else f"is called {shorten(bare(given))}"
        raise RecipeError(f"{key} {what}{compose.written(given)}; write {key}=NAME. {_allowed(kind)}")
    try:
        cls = registry.resolve(kind, given.value)
    except RecipeError as error:
        raise RecipeError(f"{key}{compose.written(given)}: {error}") from error
    built = build(cls, {name: item for name, item in node.items() if name != "name"}, key)
    return built if given.value == implied else Built(built.value, {"name": given.value, **built.tree})


def _terms(key: str, node: Node) -> Built:
    """Build one objective, under its own name, or several."""
    if isinstance(node, dict) and "name" not in node:
        return _entries(_one("objective"))(key, node)
    term = _component("objective", node, key)
    return Built({_short(term.tree["name"]): term.value}, term.tree)


def _distil(key: str, node: Node) -> Built:
    """Build ``distil``: an objective with its settings and, in the same mapping, those of the distillation."""
    entries = node if isinstance(node, dict) else {"name": node}
    own = {field.name for field in fields(Distil)}
    term = _component("objective", {name: item for name, item in entries.items() if name not in own}, key)
    settings = build(Distil, {name: item for name, item in entries.items() if name in own}, key)
    return Built((settings.value, {_short(term.tree["name"]): term.value}), {**term.tree, **settings.tree})


def _requests(key: str, node: Node) -> Built:
    """Build ``requests``, in whose sequence a text alone stands for a label."""
    sequence = node.get("sequence") if isinstance(node, dict) else None
    if isinstance(node, dict) and isinstance(sequence, Given) and isinstance(sequence.value, str | list):
        given = sequence.value if isinstance(sequence.value, list) else [sequence.value]
        named: list[Any] = [{"label": [one]} if isinstance(one, str) else one for one in given]
        node = {**node, "sequence": sequence._replace(value=named)}
    return build(Requests, node, key)


def _short(name: str) -> str:
    """Return a component's name without the module of a dotted path."""
    return re.split("[.:]", name)[-1]


def _name(key: str, node: Node) -> Built:
    name = convert(node, str, key)
    if not _NAME.fullmatch(name) or max(map(len, name.split("/"))) > LONGEST:
        raise RecipeError(
            f"{key} is {shorten(name)}; it becomes a folder: letters, digits, '_', '-' and '.', "
            f"with '/' between, at most {LONGEST} characters each."
        )
    return Built(name, name)


def _seeds(key: str, node: Node) -> Built:
    seed = convert(node or Given("0", ""), int | list[int], key)
    seeds = seed if isinstance(seed, list) else [seed]
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= one < 2**31 for one in seeds):
        raise RecipeError(
            f"{key} is {shorten(seed)}; it must be one or several different numbers from 0 to {2**31 - 1}."
        )
    return Built(seeds, seed)


def _output(key: str, node: Node) -> Built:
    output = convert(node or Given(None, ""), str | None, key)
    if output == "" or "\0" in (output or ""):
        raise RecipeError(f"{key} is {shorten(output)}; it must be the path of a folder, or null.")
    return Built(output, output)


PARTS: dict[str, _Builder] = {
    "name": _name,
    "about": _settings(About),
    "model": _one("model"),
    "data": _one("data"),
    "pretrain": _settings(Pretrain),
    "forget": _terms,
    "retain": _terms,
    "combine": _one("combination"),
    "scope": _one("scope"),
    "edit": _one("edit"),
    "guard": _one("guard"),
    "corrupt": _settings(Corrupt),
    "distil": _distil,
    "requests": _requests,
    "select": _settings(Select),
    "optim": _settings(Optim),
    "trainer": _settings(Trainer),
    "evaluate": _entries(_one("evaluator")),
    "gate": _entries(_settings(Gate)),
    "seed": _seeds,
    "output": _output,
}
"""Part -> its builder, in the order in which a resolved recipe shows them."""

OPTIONAL = ("edit", "guard", "corrupt", "distil", "requests", "select")
"""Parts that are None if a recipe does not have them, or has null or an empty mapping."""


def _allowed(kind: registry.Kind) -> str:
    return f"Allowed: {', '.join(registry.names(kind))}."


def _origins(tree: Any, node: Node | None, path: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (dotted key, origin) of every value of a resolved recipe."""
    if isinstance(tree, dict) and tree:
        below = node if isinstance(node, dict) else {}
        return [pair for key, item in tree.items() for pair in _origins(item, below.get(key), (*path, key))]
    return [(".".join(path), node.origin if isinstance(node, Given) else "default")]


def _hash(tree: Mapping[str, Any]) -> str:
    """Return the sha256 of everything that can change the result, as hex digits."""
    kept: dict[str, Any] = {key: value for key, value in tree.items() if key not in NOT_HASHED}
    kept["trainer"] = {key: value for key, value in tree["trainer"].items() if key not in NOT_HASHED_IN_TRAINER}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
