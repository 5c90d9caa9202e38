"""From files and arguments to a built recipe; what it needs, and whose figures it judges by."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.toys.glow_recipe import SMALL, TEXT, refused, same, write
from unlearn.config import packaged
from unlearn.config.recipe import load
from unlearn.config.yaml_io import dump, parse


def test_a_recipe_is_built(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "my recipe.yaml", TEXT))
    assert recipe.name == "my_recipe"
    assert type(recipe.model).__name__ == "GlowConfig" and recipe.model.depth == 2
    assert recipe.data.forget.label == ["3"]
    assert list(recipe.forget) == ["taming"] and recipe.forget["taming"].threshold == 3.0
    assert type(recipe.combine).__name__ == "WeightedSum" and type(recipe.scope).__name__ == "All"
    assert recipe.seeds == [0] and recipe.evaluate == {} and recipe.gate == {} and recipe.output is None


def test_file_mapping_and_arguments_say_the_same(tmp_path: Path) -> None:
    arguments = [f"{part}={{{', '.join(f'{k}: {v}' for k, v in SMALL[part].items())}}}" for part in ("model", "retain")]
    arguments += ["data=digits", "data.forget.label=3", "forget=taming", "forget.threshold=3", "forget.weight=0.6"]
    from_file = load(write(tmp_path, "recipe.yaml", TEXT))
    assert same(from_file, load(SMALL)) and same(from_file, load({}, arguments))
    assert not same(from_file, load(SMALL, ["forget.weight=0.7"]))


@pytest.mark.parametrize("name", packaged.names("recipe"))
def test_every_packaged_recipe_is_sound(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.about.title and recipe.about.method and recipe.about.needs
    first = packaged._packaged("recipe")[name].read_text().splitlines()
    assert first[0].startswith("# ") and any(f"python -m unlearn.run recipe={name}" in line for line in first[:4])


def test_the_resolved_recipe_is_complete_and_loads_again() -> None:
    arguments = [
        "seed=[3,1]",
        "gate.kept={metric: bits_per_dim, max: 2, about: {category: no}}",
        "about.title=$${a} 1:30",
    ]
    recipe = load("quickstart", arguments)
    assert recipe.about.title == "${a} 1:30" and recipe.gate["kept"].about == {"category": "no"}
    assert recipe.tree["optim"]["betas"] == [0.9, 0.999] and recipe.tree["pretrain"]["optim"]["ema"] is None
    assert same(recipe, load(recipe.tree))
    assert same(recipe, load(parse(dump(recipe.tree, recipe.origins), "recipe.yaml")))  # type: ignore[arg-type]


def test_origins_name_the_nearest_writer(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", TEXT)
    path = write(tmp_path, "child.yaml", "base: base.yaml\noptim: {lr: 1e-3}\n")
    origins = load(path, ["optim.steps=7", "seed=[1,2]"]).origins
    assert origins["model.depth"] == str(tmp_path / "base.yaml")
    assert origins["optim.lr"] == str(path)
    assert origins["optim.steps"] == origins["seed"] == "command line"
    assert origins["optim.batch"] == origins["scope.name"] == "default"
    assert set(origins) == {".".join(key) for key in leaves(load(path).tree)}


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in tree.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)]
    return found


def test_the_hash_is_of_what_can_change_the_result(tmp_path: Path) -> None:
    recipe = load(SMALL)
    for argument in ("output=/tmp/x", "name=other", "about.title=t", "trainer.workers=2"):
        assert load(SMALL, [argument]).hash == recipe.hash, argument
    for argument in ("seed=1", "optim.lr=1", "trainer.devices=2", "trainer.log_every=3", "forget.weight=0.61"):
        assert load(SMALL, [argument]).hash != recipe.hash, argument
    assert load(write(tmp_path, "a.yaml", TEXT)).hash == recipe.hash
    assert re.fullmatch("[0-9a-f]{64}", recipe.hash)


def test_what_a_recipe_needs() -> None:
    for part in ("model", "data", "forget"):
        assert part in refused({key: value for key, value in SMALL.items() if key != part})
    assert load({key: value for key, value in SMALL.items() if key != "retain"}).retain == {}


def test_several_terms() -> None:
    several = {**SMALL, "retain": {"taming_retain": {"weight": 0.4}, "anchor": {"name": "weight_anchor", "weight": 3}}}
    recipe = load(several)
    assert {name: term.weight for name, term in recipe.retain.items()} == {"taming_retain": 0.4, "anchor": 3.0}
    assert same(recipe, load(recipe.tree))
    assert (
        recipe.tree["retain"]["anchor"]["name"] == "weight_anchor"
        and "name" not in recipe.tree["retain"]["taming_retain"]
    )
    assert list(load(several, ["retain.anchor=null"]).retain) == ["taming_retain"]
    assert load(several, ["retain.anchor.weight=4"]).retain["anchor"].weight == 4.0
    assert list(load(several, ["retain=training_loss"]).retain) == ["training_loss"]
    assert list(load(several, ["retain.third={name: training_loss}"]).retain) == ["taming_retain", "anchor", "third"]
    assert "retain is one objective, taming_retain" in refused(SMALL, "retain.weight_anchor.weight=1")
    assert "write retain.weight=1." in refused(SMALL, "retain.taming_retain.weight=1")
    assert "write retain.SETTING=VALUE." in refused(SMALL, "retain.taming_retain={weight: 1}")
    assert "there is no objective 'ancor'" in refused(several, "retain.ancor={name: ancor}")
    assert "retain names no objective" in refused({**SMALL, "retain": {"weight": 1}})


def test_one_of_several_keeps_the_settings_that_it_had_alone() -> None:
    found = load(SMALL, ["forget={taming: {weight: 2}, training_loss: {}}"])
    assert found.forget["taming"].threshold == load(SMALL).forget["taming"].threshold == 3.0
    assert found.forget["taming"].weight == 2 and list(found.forget) == ["taming", "training_loss"]
    assert same(found, load(found.tree))
    assert list(load(SMALL, ["forget={training_loss: {}}"]).forget) == ["training_loss"]


def test_a_misspelt_objective_among_several_is_named() -> None:
    for recipe in (SMALL, {**SMALL, "forget": None}):
        error = refused(recipe, "forget={taming: {}, weight_ancor: {}}")
        assert "forget.weight_ancor" in error and "Did you mean: weight_anchor" in error


def test_evaluators_and_gates_can_be_dropped_but_not_by_mistake() -> None:
    base = {**SMALL, "evaluate": {"cost": {}, "goal": {}}, "gate": {"a": {"metric": "steps", "min": 1}}}
    assert list(load(base).evaluate) == ["cost", "goal"]
    assert list(load(base, ["evaluate.goal=null", "gate.a=null"]).evaluate) == ["cost"]
    assert load(base, ["evaluate=null", "gate=null"]).evaluate == {}
    assert "nothing to drop; for its defaults write bits_per_dim: {}" in refused(base, "evaluate.bits_per_dim=null")
    assert "nothing to drop" in refused({**SMALL, "evaluate": {"cost": None}}), "an empty entry in YAML"
    twice = load(base, ["evaluate.again={name: cost}", "gate.a.evaluator=cost"])
    assert type(twice.evaluate["again"]) is type(twice.evaluate["cost"]) and same(twice, load(twice.tree))


def test_null_resets_a_part_to_its_defaults() -> None:
    assert load({**SMALL, "optim": {"steps": 7}}, ["optim=null"]).optim.steps == load(SMALL).optim.steps
    assert type(load({**SMALL, "combine": "gru"}, ["combine=null"]).combine).__name__ == "WeightedSum"


TWO = {**SMALL, "evaluate": {"a": {"name": "bits_per_dim", "draws": 1}, "b": {"name": "bits_per_dim"}, "cost": {}}}

LIMIT = "select={metric: bits_per_dim, evaluator: a, limit: {metric: bits_per_dim, max: 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate.x={metric: bits_per_dim, max: 1}"], "write gate.x.evaluator=NAME. Allowed: a, b."),
        (["select={metric: bits_per_dim}"], "write select.evaluator=NAME. Allowed: a, b."),
        (["gate.x={metric: bits_per_dim, max: 1, evaluator: aa}"], "gate.x.evaluator is 'aa'. Did you mean: a?"),
        (["select={metric: nothing}"], "select.metric is 'nothing'"),
        ([f"{LIMIT}, evaluator: b}}}}"], "select.limit.evaluator is 'b', and one entry measures"),
        ([f"{LIMIT}, evaluator: none}}}}"], "Allowed: a."),
        (["select={every: 3}"], "select.metric has no value"),
    ],
)
def test_a_figure_of_several_entries_is_refused_with_their_keys(arguments: list[str], message: str) -> None:
    assert message in refused(TWO, *arguments)


def test_a_figure_of_one_entry_needs_no_key() -> None:
    recipe = load(TWO, ["evaluate.b=null", "gate.x={metric: bits_per_dim, max: 1}", "select={metric: bits_per_dim}"])
    assert recipe.select is not None and recipe.select.evaluator == "a" and same(recipe, load(recipe.tree))
    assert load(TWO, [f"{LIMIT}, evaluator: a}}}}"]).select is not None
    assert load(TWO, ["gate.x={metric: bits_per_dim, max: 1, evaluator: b}"]).gate["x"].evaluator == "b"
