"""Tables of settings: `settings=NAME` applies the entry for the recipe's method in `tables.NAME`."""

from typing import Any

from unlearn.config.compose import SINGLE, Given, Node, bare, given, merge, written
from unlearn.core.errors import RecipeError, did_you_mean, shorten


def settle(node: dict[str, Node]) -> dict[str, Node]:
    """Return the values without ``tables`` and ``settings``, the chosen entry laid over those that are not firm.

    The entry is ``tables[settings][method]``, method being the forget objective or the edit. Settings
    that it gives without a component's name are for the recipe's own component.

    Raises:
        RecipeError: there are no such settings, or they hold nothing for the method.
    """
    own = {key: value for key, value in node.items() if key not in ("tables", "settings")}
    settings = node.get("settings", Given(None, ""))
    name = bare(settings)
    if name is None:
        return own
    tables = _mapping(node.get("tables"))
    if not isinstance(name, str) or name not in tables:
        near = did_you_mean(str(name), tables) if tables else "This recipe has no tables of settings."
        raise RecipeError(
            f"settings is {shorten(name)}{written(settings)}. {near} Type settings=NAME or settings=null."
        )
    table = _mapping(tables[name])
    method = _method(own, name)
    entry = table.get(method)
    if not isinstance(entry, dict):
        raise RecipeError(
            f"settings={name} holds nothing for {method}. Methods that have an entry: {', '.join(table) or 'none'}. "
            "Take one of them, or type settings=null and give the values yourself."
        )
    soft, firm = _parted(own)
    return merge(merge(soft, given(entry, f"tables.{name}.{method}")), firm)  # type: ignore[return-value]


def _mapping(node: object) -> dict[str, Any]:
    """Return a mapping without origins, empty where something else stands."""
    value = bare(node)
    return value if isinstance(value, dict) else {}


def _method(node: dict[str, Node], settings: str) -> str:
    """Return the name of the one forget objective, or of the edit."""
    forget = _mapping(node.get("forget"))
    if forget and SINGLE not in forget:
        raise RecipeError(
            f"settings={settings} is for one forget objective, and there are {', '.join(forget)}. Type settings=null."
        )
    method = forget.get(SINGLE, {}).get("name") or _mapping(node.get("edit")).get("name")
    if not isinstance(method, str):
        raise RecipeError(
            f"settings={settings} needs a method; write forget=NAME, or edit=NAME. A guard takes settings=null."
        )
    return method


def _parted(node: dict[str, Node]) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return the values that an entry may replace, and the firm ones; both have the names of the components."""
    soft: dict[str, Node] = {}
    firm: dict[str, Node] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            below = _parted(value)
            for place, part in zip((soft, firm), below, strict=True):
                if part:
                    place[key] = part
        elif isinstance(value, Given) and value.firm:
            firm[key] = value
            if key == "name":  # so that settings without a name in the entry are this component's
                soft[key] = value
        else:
            soft[key] = value
    return soft, firm
