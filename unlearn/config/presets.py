"""Tables of settings: `settings=NAME` takes, from a recipe's `tables`, what NAME holds for the recipe's method."""

from __future__ import annotations

from unlearn.config.compose import COMPONENTS, TERMS, Given, Node, bare, given, is_several, merge, written
from unlearn.core.errors import RecipeError, did_you_mean, shorten

NAMED = (*COMPONENTS, *TERMS)
"""Parts that may be one component."""


def settle(node: dict[str, Node]) -> dict[str, Node]:
    """Return the values without ``tables`` and ``settings``, the chosen entry laid over those that are not firm.

    The entry is ``tables[settings][method]``, method being the forget objective or the edit. What it says of a
    component without naming it belongs to the one that the recipe has.

    Raises:
        RecipeError: there are no such settings, or they hold nothing for the method.
    """
    own = {key: value for key, value in node.items() if key not in ("tables", "settings")}
    settings = node.get("settings", Given(None, ""))
    name = bare(settings)
    if name is None:
        return own
    tables = node.get("tables", {})
    known = list(tables) if isinstance(tables, dict) else []
    if not isinstance(name, str) or name not in known:
        near = did_you_mean(str(name), known) if known else "This recipe has no tables of settings."
        raise RecipeError(
            f"settings is {shorten(name)}{written(settings)}. {near} Type settings=NAME or settings=null."
        )
    table = tables[name] if isinstance(tables, dict) else {}
    method = _method(own, name)
    entry = table.get(method) if isinstance(table, dict) else None
    if not isinstance(entry, dict):
        having = ", ".join(table) if isinstance(table, dict) else "none"
        raise RecipeError(
            f"settings={name} holds nothing for {method}. Methods that have an entry: {having}. Take one of them, "
            "or type settings=null and give the values yourself."
        )
    chosen = given(bare(entry), f"tables.{name}.{method}")
    soft, firm = _parted(own)
    assert isinstance(chosen, dict)
    return merge(merge(soft, _addressed(chosen, own), ()), firm, ())  # type: ignore[return-value]


def _method(node: dict[str, Node], settings: str) -> str:
    """Return the name of the one forget objective, or of the edit."""
    forget, edit = (_name(node.get(part)) for part in ("forget", "edit"))
    part = node.get("forget")
    if forget is None and isinstance(part, dict) and is_several(part):
        raise RecipeError(
            f"settings={settings} is for one forget objective, and there are {', '.join(part)}. Type settings=null."
        )
    method = forget or edit
    if method is None:
        raise RecipeError(
            f"settings={settings} needs a method; write forget=NAME, or edit=NAME. A guard takes settings=null."
        )
    return method


def _name(node: Node | None) -> str | None:
    """Return the name of a component, None where there is none."""
    name = bare(node.get("name") if isinstance(node, dict) else node)
    return name if isinstance(name, str) else None


def _addressed(entry: dict[str, Node], node: dict[str, Node]) -> dict[str, Node]:
    """Return an entry in which every component has a name: its own, or that of the recipe's component."""
    whole = dict(entry)
    for part in NAMED:
        found, own = whole.get(part), node.get(part)
        if isinstance(found, dict) and "name" not in found and isinstance(own, dict) and "name" in own:
            whole[part] = {"name": own["name"], **found}
    return whole


def _parted(node: dict[str, Node]) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return the values that an entry may replace, and the firm ones."""
    soft: dict[str, Node] = {}
    firm: dict[str, Node] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            below = _parted(value)
            for place, part in zip((soft, firm), below, strict=True):
                if part:
                    place[key] = part
        else:
            (firm if isinstance(value, Given) and value.firm else soft)[key] = value
    return soft, firm
