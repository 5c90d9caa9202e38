"""The recipe of one size or request among several."""

from dataclasses import replace

from unlearn.config.interpolation import escape
from unlearn.config.schema import Recipe
from unlearn.config.structured import plain


def one_request(recipe: Recipe, number: int) -> Recipe:
    """Return the recipe that carries out one size or request alone, by its number from 1."""
    if recipe.requests is None:
        raise ValueError("the recipe has no requests")
    requests = replace(recipe.requests, at=number)
    selection = requests.selection(recipe.data.forget)
    tree = {
        **recipe.tree,
        "data": {**recipe.tree["data"], "forget": escape(plain(selection))},
        "requests": {**recipe.tree["requests"], "at": number},
    }
    return replace(recipe, requests=requests, data=replace(recipe.data, forget=selection), tree=tree)


def each_request(recipe: Recipe) -> list[Recipe]:
    """Return the recipes of all sizes or requests; none where the recipe is a single one."""
    if recipe.requests is None or recipe.requests.at is not None:
        return []
    return [one_request(recipe, number) for number in range(1, recipe.requests.count + 1)]
