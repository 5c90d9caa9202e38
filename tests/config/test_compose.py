"""Recipes that build on others, arguments, and files that are no recipes."""

from pathlib import Path

import pytest

from tests.toys.glow_recipe import SMALL, TEXT, refused, write
from unlearn.config.recipe import load


def test_bases_are_merged_in_order_and_later_wins(tmp_path: Path) -> None:
    write(tmp_path, "parts/a.yaml", TEXT + "optim: {lr: 1, steps: 1, batch: 1}\n")
    write(tmp_path, "parts/b.yaml", "optim: {lr: 2, steps: 2}\n")
    child = write(tmp_path, "child.yaml", "base: [parts/a.yaml, parts/b.yaml]\noptim: {lr: 3}\n")
    optim = load(child).optim
    assert (optim.lr, optim.steps, optim.batch) == (3.0, 2, 1)
    assert load({"base": str(child), "optim": {"steps": 9}}).optim.steps == 9
    write(tmp_path, "parts/drop.yaml", "evaluate: {cost: null}\n")
    lighter = {"base": [str(child), str(tmp_path / "parts/drop.yaml")]}
    write(tmp_path, "parts/a.yaml", TEXT + "evaluate: {cost: {}, goal: {}}\n")
    assert list(load(child).evaluate) == ["cost", "goal"] and list(load(lighter).evaluate) == ["goal"]
    assert load({"base": "quickstart"}).name == "quickstart"


def test_circles_and_missing_bases_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n" + TEXT)
    write(tmp_path, "b.yaml", "base: sub/../a.yaml\n")
    (tmp_path / "sub").mkdir()
    assert "goes round in a circle" in refused(tmp_path / "a.yaml")
    assert "there is no recipe file" in refused(write(tmp_path, "c.yaml", "base: absent.yaml"))
    assert "there is no recipe 'quickstat'. Did you mean: quickstart?" in refused({"base": "quickstat"})
    assert "it must be a recipe or a list" in refused({"base": [["quickstart"]]})
    assert "it must be a recipe or a list" in refused({"base": {"a": 1}})
    for level in range(8):
        below = "" if level == 0 else f"base: [{', '.join([f'l{level - 1}.yaml'] * 4)}]"
        write(tmp_path, f"l{level}.yaml", below or TEXT)
    assert "files are read through 'base:'" in refused(tmp_path / "l7.yaml")
    assert "files are read through 'base:'" in refused({"base": ["quickstart"] * 40})
    assert "there is no recipe file" in refused({"base": "~nobody_of_this_name/x.yaml"})


def test_another_component_starts_from_its_own_defaults() -> None:
    base = {"base": "flow/category_digits"}
    assert load(base).forget["category_taming"].weight == 0.03
    assert load({**base, "forget": {"threshold": 2}}).forget["category_taming"].weight == 0.03, "same: merged"
    assert (
        load({**base, "forget": {"name": "category_taming", "threshold": 2}}).forget["category_taming"].weight == 0.03
    )
    assert load({**base, "forget": "category_taming"}).forget["category_taming"].weight == 1.0, "bare: its defaults"
    for other in ("likelihood_ascent", {"name": "likelihood_ascent"}, {"likelihood_ascent": {}}):
        assert load({**base, "forget": other}).forget["likelihood_ascent"].weight == 1.0
    recipe = load(
        "flow/category_digits", ["forget=likelihood_ascent", "forget.weight=2", "combine=gru", "combine.gamma=0.5"]
    )
    assert recipe.forget["likelihood_ascent"].weight == 2.0 and recipe.combine.gamma == 0.5
    assert "there is no key 'forget.threshold'" in refused(
        {**base, "forget": "likelihood_ascent"}, "forget.threshold=1"
    )


@pytest.mark.parametrize("argument", ["a", "=1", "a.=1", ".a=1", "a..b=1", "", "seed=[1", "seed={", "seed='"])
def test_what_is_no_setting(argument: str) -> None:
    assert "no setting" in (message := refused(SMALL, argument)) or "is no valid YAML" in message


def test_unknown_recipes_and_files(tmp_path: Path) -> None:
    assert "Did you mean: quickstart?" in refused("quickstrt")
    assert "there is no recipe file" in refused(tmp_path / "none.yaml")
    assert "there is no recipe file" in refused(str(tmp_path / "x\0.yaml"))
    assert "cannot be read" in refused("x" * 5000 + ".yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "there is no recipe file" in refused(tmp_path / "folder.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"about: {title: caf\xe9}")
    assert "cannot be read" in refused(tmp_path / "latin.yaml")
    assert "bytes are too many" in refused(write(tmp_path, "large.yaml", "a" * 3_000_000))
    assert "must hold a mapping" in refused(write(tmp_path, "list.yaml", "- 1"))
    assert "must hold a mapping" in refused(write(tmp_path, "empty.yaml", ""))
