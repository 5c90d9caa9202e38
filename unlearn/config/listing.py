"""The list of packaged recipes, read without importing torch."""

from collections.abc import Sequence
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
    headings = [heading.upper() for heading in Row._fields]
    more = ["Run one:    python -m unlearn.run recipe=NAME", "Learn more: --help"]
    return "\n".join([*_aligned([headings, *rows()]), "", study_list(), "", *more])


def study_list() -> str:
    """Return the list of packaged studies as a table."""
    found = [
        (name, _text(given(packaged.read(name, "study").tree.get("about"), name), "title"))
        for name in packaged.names("study")
    ]
    return "\n".join([*_aligned([("STUDY", "TITLE"), *found]), "", "Run one:    python -m unlearn.study NAME"])


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


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
