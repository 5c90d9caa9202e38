"""Truths for every packaged recipe; those for objectives, combinations and scopes stand in test_every_objective.py."""

from importlib.util import find_spec

import pytest

from unlearn.config import packaged
from unlearn.config.recipe import load
from unlearn.core.errors import RecipeError
from unlearn.experiment.runner import check

HUB = ("diffusion/stable_diffusion", "language/muse_books", "language/muse_news", "language/tofu")
"""Recipes whose models are on a hub, which tests do not ask; see test_language_recipes.py, test_stable_diffusion.py."""

LARGE = (
    *(f"diffusion/{name}" for name in ("salun_mnist", "sfd_mnist", "esd_openmoji", "uce_openmoji", "rece_openmoji")),
    "gan/stylegan2_faces",
)
"""Recipes of a size for a GPU; test_large_recipes.py runs them small."""


def test_no_recipe_is_lost_unseen() -> None:
    assert (
        len(packaged.names("recipe")) == 60
    )  # quickstart, 7 for flows, 22 for language, 21 for diffusion models, 9 for GANs


@pytest.mark.parametrize("name", packaged.names("recipe"))
def test_every_recipe_is_sound(name: str) -> None:
    """It loads, says what it is, loads again from what it resolves to, takes a step, and every evaluator runs."""
    recipe = load(name)
    assert recipe.about.title and recipe.about.needs
    assert load(recipe.tree).hash == recipe.hash
    if name in HUB:
        with pytest.raises(RecipeError, match="hub"):
            check(recipe)
    elif name not in LARGE and not (name.endswith("_faces") and find_spec("gan_face_generate") is None):
        assert "The recipe is sound." in check(recipe)
