"""The parts of a run, each with a folder of its own: one per seed, and one per size or request."""

from dataclasses import replace
from pathlib import Path

from unlearn.config.schema import Recipe
from unlearn.config.single_request import each_request


def parts_of(recipe: Recipe) -> dict[str, Recipe]:
    """Return folder -> recipe of each seed, else of each size or request; none for a single run."""
    if len(recipe.seeds) > 1:
        return {
            f"seed-{seed}": replace(recipe, seeds=[seed], tree={**recipe.tree, "seed": seed}) for seed in recipe.seeds
        }
    return {one.requests.folder: one for one in each_request(recipe) if one.requests}


def over(recipe: Recipe) -> str:
    """Return what the parts differ in: seeds, sizes or requests; empty for a single run."""
    if len(recipe.seeds) > 1:
        return "seeds"
    return recipe.requests.over if recipe.requests and recipe.requests.at is None else ""


def single_runs(recipe: Recipe, folder: Path) -> dict[Path, Recipe]:
    """Return folder -> recipe of all single runs that a run consists of, in the order in which they are run."""
    parts = parts_of(recipe)
    if not parts:
        return {folder: recipe}
    return {path: one for name, part in parts.items() for path, one in single_runs(part, folder / name).items()}
