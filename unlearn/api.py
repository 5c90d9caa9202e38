"""The Python entry: the same as the command line, for notebooks and for models in memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn.config.recipe import load
from unlearn.core.boundary import components
from unlearn.experiment.runner import Result, run

__all__ = ["Result", "unlearn"]


def unlearn(
    model_or_path: Any = None, recipe: str | Path | Mapping[str, Any] = "quickstart", **overrides: Any
) -> Result:
    """Unlearn what a recipe names from a model.

    Args:
        model_or_path: a model in memory (a wrapper, or what its wrapper's ``adopt`` takes; it is left as it is), the
            folder of a saved model, or None for the recipe's own target.
        recipe: name, path, or the recipe itself as a mapping.
        **overrides: recipe keys; nested ones as ``{"optim.lr": 1e-4}`` or as ``optim={"lr": 1e-4}``.

    Returns:
        The unlearned model, every figure and the run directory.

    Raises:
        RecipeError: something is wrong with the recipe or the data; nothing was written.
        GateFailed: a figure misses a threshold of the recipe; ``error.result`` holds the result all the same.
    """
    settings = [f"{key}={_text(value)}" for key, value in _flat(overrides)]
    if isinstance(model_or_path, str | Path):
        settings.append(f"model.pretrained={_text(model_or_path)}")
        model_or_path = None
    with components():
        return run(load(recipe, settings), ["unlearn.unlearn", str(recipe), *settings], model_or_path)


def _text(value: Any) -> str:
    """Return a Python value as recipe text; characters that a recipe reads as a reference stand for themselves."""
    return json.dumps(value, ensure_ascii=False, default=_plain).replace("${", "$${")


def _plain(value: Any) -> Any:
    """Return an array as a list or a number, and anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) pairs; a component given with its name replaces the recipe's, so it stays whole."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value and "name" not in value
        pairs += _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return pairs
