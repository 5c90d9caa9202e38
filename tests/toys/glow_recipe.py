"""A recipe of a small Glow as a mapping and as a file, and the message with which one is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unlearn.config.recipe import load
from unlearn.config.schema import Recipe
from unlearn.core.errors import RecipeError

SMALL: dict[str, Any] = {
    "model": {"name": "glow", "depth": 2, "width": 8},
    "data": {"name": "digits", "forget": {"label": [3]}},
    "forget": {"name": "taming", "threshold": 3, "weight": 0.6},
    "retain": {"name": "taming_retain", "weight": 0.4},
}
TEXT = """
model: {name: glow, depth: 2, width: 8}
data: {name: digits, forget: {label: [3]}}
forget: {name: taming, threshold: 3, weight: 0.6}
retain: {name: taming_retain, weight: 0.4}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def same(first: Recipe, second: Recipe) -> bool:
    """Whether two recipes are equal up to who gave the values."""
    return replace(first, origins={}) == replace(second, origins={})


def refused(recipe: Any, *arguments: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(recipe, arguments)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 1500
    return message
