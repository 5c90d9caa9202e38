"""The list of packaged recipes, read without importing torch."""

from __future__ import annotations

from typing import NamedTuple

from unlearn.config import compose, packaged, registry
from unlearn.config.compose import Given, Node, given
from unlearn.core.errors import RecipeError


class Row(NamedTuple):
    """One row of the list of recipes."""

    recipe: str
    family: str
    method: str
    needs: str
    title: str


def rows() -> list[Row]:
    """Return a row for every packaged recipe; those without a family's folder come first."""
    return [_row(name) for name in sorted(packaged.names("recipe"), key=lambda name: ("/" in name, name))]


def listing() -> str:
    """Return the list as a table."""
    table = [Row(*(heading.upper() for heading in Row._fields)), *rows()]
    widths = [max(len(row[column]) for row in table) for column in range(len(Row._fields))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
    more = ["Run one:    python -m unlearn.run recipe=NAME", "Learn more: --help"]
    return "\n".join([*lines, "", study_list(), "", *more])


def study_list() -> str:
    """Return the list of packaged studies as a table."""
    found = []
    for name in packaged.names("study"):
        about = packaged.read(name, "study").tree.get("about")
        found.append((name, _text(given(about, name), "title")))
    width = max(len(name) for name, _ in [("STUDY", ""), *found])
    lines = [f"{name:<{width}}  {title}".rstrip() for name, title in [("STUDY", "TITLE"), *found]]
    return "\n".join([*lines, "", "Run one:    python -m unlearn.study NAME"])


def _row(name: str) -> Row:
    _, node = compose.read(name)
    about = node.get("about", {})
    family = name.partition("/")[0] if "/" in name else _family(node)
    return Row(name, family, _text(about, "method"), _text(about, "needs"), _text(about, "title"))


def _family(node: dict[str, Node]) -> str:
    """Return the family whose module the recipe's model lives in, e.g. flow for unlearn.models.flow.config."""
    try:
        module = registry.target("model", _text(node.get("model", {}), "name")).partition(":")[0]
    except RecipeError:
        return ""
    return module.removeprefix("unlearn.models.").partition(".")[0] if module.startswith("unlearn.models.") else ""


def _text(node: Node, key: str) -> str:
    value = node.get(key) if isinstance(node, dict) else None
    return str(value.value) if isinstance(value, Given) and value.value is not None else ""
