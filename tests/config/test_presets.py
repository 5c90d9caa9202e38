"""Settings of a method that a recipe takes from its tables."""

from pathlib import Path

import pytest

from tests.toys.glow_recipe import SMALL, TEXT, refused, write
from unlearn.config.recipe import load

TABLES = """
tables:
  published:
    taming: {forget: {threshold: 5}, retain: {weight: 0.7}, optim: {lr: 0.1, steps: 7}}
    likelihood_ascent: {retain: {name: weight_anchor, strength: 0.5}, optim: {lr: 0.2}}
    task_vector: {edit: {alpha: 3}}
  tuned:
    taming: {forget: {threshold: 6}}
settings: published
"""


@pytest.fixture
def tabled(tmp_path: Path) -> Path:
    """A recipe with two tables of settings."""
    return write(tmp_path, "tabled.yaml", TEXT + TABLES)


def test_settings_take_the_methods_entry_from_a_table(tabled: Path) -> None:
    recipe = load(tabled)
    assert (recipe.forget["taming"].threshold, recipe.forget["taming"].weight) == (5.0, 0.6)
    assert (recipe.retain["taming_retain"].weight, recipe.optim.lr, recipe.optim.steps) == (0.7, 0.1, 7)
    assert recipe.origins["optim.lr"] == recipe.origins["retain.weight"] == "tables.published.taming"
    assert recipe.origins["forget.weight"] == str(tabled) and recipe.origins["optim.batch"] == "default"
    assert not {"tables", "settings"} & set(recipe.tree)
    assert load(tabled, ["settings=tuned"]).forget["taming"].threshold == 6.0
    other = load(tabled, ["forget=likelihood_ascent"])
    assert (list(other.retain), other.retain["weight_anchor"].strength, other.optim.lr) == (["weight_anchor"], 0.5, 0.2)
    assert load(tabled, ["edit=task_vector", "forget=null"]).tree["edit"]["alpha"] == 3.0


def test_the_hash_of_settings_is_that_of_their_result(tabled: Path) -> None:
    plain = load(tabled, ["settings=null"])
    assert plain.forget["taming"].threshold == 3.0
    spelt = ["settings=null", "forget.threshold=5", "retain.weight=0.7", "optim.lr=0.1", "optim.steps=7"]
    assert load(tabled, spelt).hash == load(tabled).hash == load(load(tabled).tree).hash != plain.hash


def test_what_is_said_above_a_table_stands(tabled: Path) -> None:
    """The command line, a call, and a file that builds on the one with the table; a component of another name too."""
    assert load(tabled, ["optim.lr=3"]).optim.lr == 3.0
    above = write(tabled.parent, "above.yaml", "base: tabled.yaml\noptim: {lr: 3}\n")
    for recipe in (load(above), load({"base": str(tabled), "optim": {"lr": 3}})):
        assert (recipe.optim.lr, recipe.optim.steps) == (3.0, 7)
    kept = load(tabled, ["retain=training_loss"])
    assert (list(kept.retain), kept.retain["training_loss"].weight) == (["training_loss"], 0.7)
    other = load(tabled, ["forget=likelihood_ascent", "retain=training_loss"])
    assert (list(other.retain), other.optim.lr) == (["training_loss"], 0.2)
    assert load(tabled, ["retain=null"]).retain == {}


def test_settings_that_are_not_there_are_refused(tabled: Path) -> None:
    assert "Did you mean: tuned?" in refused(tabled, "settings=tund")
    assert "holds nothing for debias. Methods that have an entry: taming, likeli" in refused(tabled, "forget=debias")
    assert "entry: taming. Take" in refused(tabled, "settings=tuned", "forget=likelihood_ascent")
    assert "no tables of settings" in refused(SMALL, "settings=published")
    assert "one forget objective" in refused(tabled, "forget={taming: {}, debias: {}}")
    assert "write forget=NAME, or edit=NAME" in refused(tabled, "forget=null")
