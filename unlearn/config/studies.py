"""The packaged studies, read without importing anything slow."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from unlearn.config.yaml_io import parse


@cache
def _packaged() -> dict[str, Traversable]:
    folder = files("unlearn.recipes") / "studies"
    found = folder.iterdir() if folder.is_dir() else ()
    return {item.name.removesuffix(".yaml"): item for item in found if item.name.endswith(".yaml")}


def names() -> list[str]:
    """Return the names of the packaged studies."""
    return sorted(_packaged())


def text_of(name: str) -> str:
    """Return what a packaged study's file says."""
    return _packaged()[name].read_text(encoding="utf-8")


def title(name: str) -> str:
    """Return the title of a packaged study."""
    tree = parse(text_of(name), name)
    about = tree.get("about") if isinstance(tree, dict) else None
    return str(about.get("title") or "") if isinstance(about, dict) else ""
