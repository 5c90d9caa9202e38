"""Truths for every packaged recipe; those for objectives, combinations and scopes stand in test_every_objective.py."""

from pathlib import Path

import pytest

from unlearn.job import check
from unlearn.recipe import load

RECIPES = sorted(
    str(path.relative_to(root).with_suffix(""))
    for root in [Path(__file__).resolve().parent.parent / "recipes"]
    for path in root.rglob("*.yaml")
)


def test_no_recipe_is_lost_unseen() -> None:
    assert len(RECIPES) == 6  # quickstart and five for flows


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_sound(name: str) -> None:
    """It loads, says what it is, loads again from what it resolves to, and takes a step."""
    recipe = load(name)
    assert recipe.about.title and recipe.about.needs
    assert load(recipe.tree).hash == recipe.hash
    assert "The recipe is sound." in check(recipe)
