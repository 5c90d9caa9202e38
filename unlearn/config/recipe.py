"""Recipes: from a name, a file or a mapping to checked and built parts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from unlearn.config import compose, registry
from unlearn.config.compose import Given, Node, bare
from unlearn.config.interpolation import escape, interpolate
from unlearn.config.presets import settle
from unlearn.config.schema import About, Corrupt, Distil, Gate, Pretrain, Recipe, Select, Trainer
from unlearn.config.structured import Built, build, convert
from unlearn.core.errors import RecipeError, did_you_mean, shorten
from unlearn.core.optim import Optim

PARTS = ["name", "about", "model", "data", "pretrain", "forget", "retain", "combine", "scope"]
PARTS += ["edit", "guard", "corrupt", "distil", "select", "optim", "trainer", "evaluate", "gate", "seed", "output"]
"""The keys of a recipe, in the order in which a resolved recipe shows them."""

CHOICE = ("settings", "tables")
"""Keys of a recipe that a resolved one has no more: see unlearn.config.presets."""

NOT_HASHED = ("name", "about", "output")
NOT_HASHED_IN_TRAINER = ("workers", "checkpoint_every", "tensorboard", "wandb")
"""Keys that cannot change a bit of the result, so that a run may be resumed under other values of them."""

_FIXED: dict[str, type[Optim | Trainer]] = {"optim": Optim, "trainer": Trainer}
_DEFAULTS = {"combine": "sum", "scope": "all"}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", re.ASCII)


class _Component(NamedTuple):
    name: str
    built: Built

    def tree(self, implied: str = "") -> dict[str, Any]:
        """Return the settings with the name in front, unless the key already says it."""
        return self.built.tree if self.name == implied else {"name": self.name, **self.built.tree}


def load(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe with every component built.

    Args:
        recipe: name of a packaged recipe, path of a file that ends in .yaml, or the recipe itself; a mapping may
            inherit too, e.g. ``{"base": "quickstart", "optim": {"steps": 100}}``.
        overrides: arguments ``key=value``, laid over the recipe one by one. Lists and mappings are written in YAML's
            flow style (``seed=[0,1,2]``); one value alone for a list is a list of one (``data.forget.label=5``).

    Raises:
        RecipeError: anything is wrong with it; the message names the key, what was given and what is allowed.
    """
    name, node = compose.read(recipe)
    node = interpolate(settle(compose.override(node, overrides)))
    for key in node:
        if key not in PARTS:
            longer = [f"{part}.{key}" for part, cls in _FIXED.items() if key in {field.name for field in fields(cls)}]
            near = f"Did you mean: {', '.join(longer)}? " if longer else ""
            where = compose.written(node[key])
            raise RecipeError(
                f"a recipe has no part {shorten(key)}{where}. {near}{did_you_mean(key, [*PARTS, *CHOICE])}"
            )
    about = build(About, _part(node, "about"), "about")
    model = _component("model", _part(node, "model"), "model")
    data = _component("data", _part(node, "data"), "data")
    pretrain = build(Pretrain, _part(node, "pretrain"), "pretrain")
    forget, forget_tree = _terms("forget", _part(node, "forget"))
    retain, retain_tree = _terms("retain", _part(node, "retain"))
    combine = _component("combination", _part(node, "combine"), "combine")
    scope = _component("scope", _part(node, "scope"), "scope")
    edit = _component("edit", node["edit"], "edit") if _part(node, "edit") else None
    guard = _component("guard", node["guard"], "guard") if _part(node, "guard") else None
    corrupt = build(Corrupt, _part(node, "corrupt"), "corrupt") if _part(node, "corrupt") else None
    distil, distil_by, distil_tree = _distil(_part(node, "distil"))
    optim = build(Optim, _part(node, "optim"), "optim")
    trainer = build(Trainer, _part(node, "trainer"), "trainer")
    evaluate = {
        key: _component("evaluator", entry, f"evaluate.{key}", key) for key, entry in _entries(node, "evaluate")
    }
    select = build(Select, _part(node, "select"), "select") if _part(node, "select") else None
    gate = {key: build(Gate, entry, f"gate.{key}") for key, entry in _entries(node, "gate")}
    name = _name(node, name)
    seed, seeds = _seeds(node)
    output = _output(node)
    if (forget and edit) or not (forget or edit or guard):
        what = "both a forget and an edit part; take one, and write null for the other" if edit else "no forget part"
        ways = "write forget=NAME, or edit=NAME, or guard=NAME alone or around one of them"
        raise RecipeError(f"the recipe has {what}; {ways}. {_allowed('objective')}")
    if combine.built.value.separate and forget and not retain:
        raise RecipeError(f"combine={combine.name} takes two gradients, and there is no retain part. Type combine=sum.")
    if select is not None and select.value.evaluator not in evaluate:
        raise RecipeError(
            f"select.evaluator is {select.value.evaluator!r}; it must be an entry of evaluate: {', '.join(evaluate)}."
        )
    tree = {
        "name": name,
        "about": about.tree,
        "model": model.tree(),
        "data": data.tree(),
        "pretrain": pretrain.tree,
        "forget": forget_tree,
        "retain": retain_tree,
        "combine": combine.tree(),
        "scope": scope.tree(),
        **({"edit": edit.tree()} if edit else {}),
        **({"guard": guard.tree()} if guard else {}),
        **({"corrupt": corrupt.tree} if corrupt else {}),
        **({"distil": distil_tree} if distil else {}),
        **({"select": select.tree} if select else {}),
        "optim": optim.tree,
        "trainer": trainer.tree,
        "evaluate": {key: evaluator.tree(key) for key, evaluator in evaluate.items()},
        "gate": {key: entry.tree for key, entry in gate.items()},
        "seed": seed,
        "output": output,
    }
    return Recipe(
        name=name,
        about=about.value,
        model=model.built.value,
        data=data.built.value,
        pretrain=pretrain.value,
        forget=forget,
        retain=retain,
        combine=combine.built.value,
        scope=scope.built.value,
        edit=edit.built.value if edit else None,
        guard=guard.built.value if guard else None,
        corrupt=corrupt.value if corrupt else None,
        distil=distil,
        distil_by=distil_by,
        select=select.value if select else None,
        optim=optim.value,
        trainer=trainer.value,
        evaluate={key: evaluator.built.value for key, evaluator in evaluate.items()},
        gate={key: entry.value for key, entry in gate.items()},
        seeds=seeds,
        output=output,
        tree=escape(tree),
        origins=dict(_origins(tree, node, ())),
        hash=_hash(tree),
    )


def _part(node: dict[str, Node], key: str) -> Node:
    """Return a part; nothing and null both mean its defaults."""
    part = node.get(key, {})
    return {} if isinstance(part, Given) and part.value is None else part


def _entries(node: dict[str, Node], key: str) -> list[tuple[str, Node]]:
    """Return the named entries of a part that is a mapping of things."""
    part = _part(node, key)
    if not isinstance(part, dict):
        raise RecipeError(
            f"{key} is {shorten(bare(part))}{compose.written(part)}; it must be a mapping, such as {{name: {{}}}}."
        )
    return list(part.items())


def _component(kind: registry.Kind, node: Node, key: str, implied: str = "") -> _Component:
    """Build one component from ``{name: ..., settings}``."""
    if isinstance(node, Given) and isinstance(node.value, str):
        node = {"name": node}
    if isinstance(node, Given):
        shown = shorten(bare(node))
        raise RecipeError(
            f"{key} is {shown}{compose.written(node)}; it must be a name or a mapping with one. {_allowed(kind)}"
        )
    given = node.get("name", Given(implied or _DEFAULTS.get(key), ""))
    if not isinstance(given, Given) or not isinstance(given.value, str) or not given.value:
        what = "has no name" if bare(given) is None else f"is called {shorten(bare(given))}"
        raise RecipeError(f"{key} {what}{compose.written(given)}; write {key}=NAME. {_allowed(kind)}")
    try:
        cls = registry.resolve(kind, given.value)
    except RecipeError as error:
        raise RecipeError(f"{key}{compose.written(given)}: {error}") from error
    return _Component(given.value, build(cls, {name: item for name, item in node.items() if name != "name"}, key))


def _terms(key: str, node: Node) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build one objective, under its own name, or several; return them and their tree."""
    if isinstance(node, dict) and not node:
        return {}, {}
    if isinstance(node, dict) and compose.is_several(node):
        several = {name: _component("objective", entry, f"{key}.{name}", name) for name, entry in node.items()}
        tree = {name: term.tree(name) for name, term in several.items()}
        return {name: term.built.value for name, term in several.items()}, tree
    if isinstance(node, dict) and "name" not in node:
        first = next(iter(node))
        names = registry.names("objective")
        raise RecipeError(
            f"{key} names no objective{compose.written(node[first])}; write {key}=NAME. {shorten(first)} is none; "
            f"{did_you_mean(first, names)}"
        )
    term = _component("objective", node, key)
    return {re.split("[.:]", term.name)[-1]: term.built.value}, term.tree()


def _distil(node: Node) -> tuple[Distil | None, dict[str, Any], dict[str, Any]]:
    """Build the part that names an objective and says, beside its settings, how the target is distilled by it."""
    if isinstance(node, dict) and not node:
        return None, {}, {}
    entries = node if isinstance(node, dict) else {"name": node}
    own = {field.name for field in fields(Distil)}
    term = _component("objective", {key: value for key, value in entries.items() if key not in own}, "distil")
    settings = build(Distil, {key: value for key, value in entries.items() if key in own}, "distil")
    return settings.value, {re.split("[.:]", term.name)[-1]: term.built.value}, {**term.tree(), **settings.tree}


def _name(node: dict[str, Node], otherwise: str) -> str:
    name = convert(node["name"], str, "name") if "name" in node else otherwise
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"name is {shorten(name)}; it becomes a folder: letters, digits, '_', '-' and '.', with '/' between."
        )
    return str(name)


def _seeds(node: dict[str, Node]) -> tuple[int | list[int], list[int]]:
    seed = convert(node.get("seed", Given("0", "")), int | list[int], "seed")
    seeds = seed if isinstance(seed, list) else [seed]
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= one < 2**31 for one in seeds):
        raise RecipeError(
            f"seed is {shorten(seed)}; it must be one or several different numbers from 0 to {2**31 - 1}."
        )
    return seed, seeds


def _output(node: dict[str, Node]) -> str | None:
    output = convert(node.get("output", Given(None, "")), str | None, "output")
    if output == "" or "\0" in (output or ""):
        raise RecipeError(f"output is {shorten(output)}; it must be the path of a folder, or null.")
    return output if output is None else str(output)


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
