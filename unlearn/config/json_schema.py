"""The JSON schema of recipes, for completion and checks in an editor: python -m unlearn.config.json_schema [FILE].

A recipe names it in a first line such as ``# yaml-language-server: $schema=recipe.schema.json``. Without FILE the
schema is printed. The packaged one is ``recipes/recipe.schema.json``; one made where plugins are installed has their
components too.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from unlearn.config import registry
from unlearn.core.validation import Range, above, at_least, at_most, distinct, ranges

Schema: TypeAlias = dict[str, Any]

REFERENCE = r"\$\{"
"""`${optim.lr}` may stand for any value."""
TEXT: Schema = {"type": ["string", "number", "boolean"]}
"""Every scalar is read as text first, so that a label may be written 3."""

KEYWORDS = {at_least: "minimum", distinct: "minimum", above: "exclusiveMinimum", at_most: "maximum"}
"""Check of a range -> how the schema says it; ``distinct`` is of lists, whose items have the bound."""


def schema() -> Schema:
    """Return the schema of recipes, with every registered component and its settings."""
    from unlearn.config.compose import COMPONENTS, TERMS
    from unlearn.config.recipe import PARTS
    from unlearn.config.requests import Requests
    from unlearn.config.schema import About, Corrupt, Distil, Gate, Pretrain, Select, Trainer
    from unlearn.core.optim import Optim

    found: Schema = {}
    kinds = {kind: _component(kind, found) for kind in registry.BASES}
    plain = {"about": About, "pretrain": Pretrain, "corrupt": Corrupt, "select": Select, "optim": Optim}
    parts: Schema = {part: _nullable(_settings(cls, found)) for part, cls in {**plain, "trainer": Trainer}.items()}
    parts |= {part: kinds[kind] for part, kind in COMPONENTS.items()}
    parts["distil"] = _distil(kinds["objective"], _settings(Distil, found), found)
    parts["requests"] = _requests(_settings(Requests, found), found)
    parts |= dict.fromkeys(TERMS, _terms(kinds["objective"], found))
    parts["evaluate"] = _nullable({"type": "object", "additionalProperties": _nullable(kinds["evaluator"])})
    parts["evaluate"]["anyOf"][0]["properties"] = {
        name: _entry("evaluator", name) for name in registry.names("evaluator")
    }
    parts["gate"] = _nullable({"type": "object", "additionalProperties": _nullable(_settings(Gate, found))})
    parts |= {"name": TEXT, "output": _nullable(TEXT), "settings": _nullable(TEXT)}
    parts |= {"seed": _type(int | list[int], found), "tables": {"type": "object"}, "base": _type(list[str], found)}
    order = ["base", *PARTS, "settings", "tables"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Recipe of unlearn",
        "type": "object",
        "properties": {part: parts[part] for part in order},
        "additionalProperties": False,
        "definitions": dict(sorted(found.items())),
    }


def _component(kind: registry.Kind, found: Schema) -> Schema:
    """Define every component of a kind, and return the schema of a part that is one: a name, or a mapping with it."""
    names = registry.names(kind)
    for name in names:
        made = _object(registry.resolve(kind, name), found)
        found[f"{kind}.{name}"] = {**made, "title": name, "properties": {"name": {}, **made["properties"]}}
    named: Schema = {
        "anyOf": [{"enum": names}, {"type": "string", "pattern": rf"^[A-Za-z_]\w*([.:]\w+)+$|{REFERENCE}"}]
    }
    chosen = [
        {"if": {"properties": {"name": {"const": one}}, "required": ["name"]}, "then": _ref(f"{kind}.{one}")}
        for one in names
    ]
    found[kind] = {"type": "object", "properties": {"name": {**named, "description": f"the {kind}"}}, "allOf": chosen}
    return {"anyOf": [named, _ref(kind), _type(NoneType, found)]}


def _entry(kind: registry.Kind, name: str) -> Schema:
    """Return the schema of an entry whose key is a component's name: its settings, or another component by name."""
    return {
        "type": ["string", "null", "object"],
        "if": {"type": "object", "required": ["name"]},
        "then": _ref(kind),
        "else": {"if": {"type": "object"}, "then": _ref(f"{kind}.{name}")},
    }


def _terms(objective: Schema, found: Schema) -> Schema:
    """Define forget and retain: one objective, or a mapping of several.

    A mapping without a name may also be settings of an objective that a base names, so other keys are allowed.
    """
    name, one, null = objective["anyOf"]
    several = {
        "type": "object",
        "not": {"required": ["name"]},
        "properties": {key: _entry("objective", key) for key in registry.names("objective")},
        "additionalProperties": {"if": {"type": "object", "required": ["name"]}, "then": _ref("objective")},
    }
    found["terms"] = {"anyOf": [name, {"allOf": [one, {"required": ["name"]}]}, several, null]}
    return _ref("terms")


def _distil(objective: Schema, own: Schema, found: Schema) -> Schema:
    """Define distil, whose mapping holds the settings of its objective and those of ``own``, and no others."""
    name, _, null = objective["anyOf"]
    settings = found[own["$ref"].rpartition("/")[2]]["properties"]
    chosen = []
    for one in registry.names("objective"):
        theirs = {key: _ref(f"objective.{one}/properties/{key}") for key in found[f"objective.{one}"]["properties"]}
        allowed = {"properties": theirs | {key: {} for key in settings}, "additionalProperties": False}
        chosen.append({"if": {"properties": {"name": {"const": one}}, "required": ["name"]}, "then": allowed})
    found["distil"] = {"type": "object", "properties": {"name": name, **settings}, "allOf": chosen}
    return {"anyOf": [name, _ref("distil"), null]}


def _requests(own: Schema, found: Schema) -> Schema:
    """Allow a label alone among the selections of a sequence."""
    one = {"anyOf": [_ref("Selection"), TEXT]}
    sequence = found[own["$ref"].rpartition("/")[2]]["properties"]["sequence"]
    sequence["anyOf"] = [{"type": "array", "items": one}, one, {"type": "null"}]
    return _nullable(own)


def _settings(cls: type[Any], found: Schema) -> Schema:
    """Define a dataclass once, and return a reference to it."""
    if cls.__name__ not in found:
        found[cls.__name__] = {}
        found[cls.__name__] = _object(cls, found)
    return _ref(cls.__name__)


def _object(cls: type[Any], found: Schema) -> Schema:
    """Return the schema of a dataclass: its fields with types, defaults and descriptions from its docstring."""
    from unlearn.config.structured import MISSING, default, hints

    types, described = hints(cls), descriptions(cls)  # type: ignore[arg-type]
    annotated = get_type_hints(cls, include_extras=True)
    properties: Schema = {}
    for field in fields(cls):
        if field.name in types:
            own = dict(_type(types[field.name], found))  # a copy: types such as TEXT are shared
            for _, allowed in ranges(annotated[field.name]):
                own = _within(own, allowed)
            if field.name in described:
                own["description"] = described[field.name]
            value = default(field)
            if value != MISSING and isinstance(value, int | float | str | None):
                own["default"] = value
            properties[field.name] = own
    summary = (getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
    return {"type": "object", "description": summary, "properties": properties, "additionalProperties": False}


def _type(hint: Any, found: Schema) -> Schema:
    """Return the schema of the values that a field of this type accepts."""
    kind, options = get_origin(hint) or hint, get_args(hint)
    if is_dataclass(hint):
        return _nullable(_settings(hint, found))  # type: ignore[arg-type]
    if kind in (Union, UnionType):
        rest = [option for option in options if option is not NoneType]
        inner = _type(rest[0], found) if len(rest) == 1 else {"anyOf": [_type(option, found) for option in rest]}
        return _nullable(inner) if len(rest) < len(options) else inner
    if kind is Literal:
        return {"enum": [*options, *(int(o) for o in options if isinstance(o, str) and o.isdecimal())]}
    if kind is tuple and options[-1:] != (...,):
        items = [_type(option, found) for option in options]
        return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
    if kind in (list, tuple):
        item = _type((options or (Any,))[0], found)
        return {"anyOf": [{"type": "array", "items": item}, item]}  # one value alone is a list of one
    if kind is dict:
        return {"type": "object", "additionalProperties": _type((options or (str, Any))[1], found)}
    words = {bool: "boolean", int: "integer", float: "number"}
    if hint in words:
        return {"type": [words[hint], "string"], "pattern": REFERENCE}  # the pattern holds for strings alone
    return {str: TEXT, NoneType: {"type": "null"}}.get(hint, {})


def _within(inner: Schema, allowed: Range) -> Schema:
    """Return a type's schema with the range of its numbers."""
    if "anyOf" in inner:
        return {**inner, "anyOf": [_within(one, allowed) for one in inner["anyOf"]]}
    if inner.get("type") == "array":
        return {**inner, "items": _within(inner["items"], allowed), "minItems": 1, "uniqueItems": True}
    is_number = {"integer", "number"} & {*inner.get("type", ())}
    return {**inner, KEYWORDS[allowed.check]: allowed.bound} if is_number else inner


def _nullable(inner: Schema) -> Schema:
    if isinstance(inner.get("type"), list):
        return {**inner, "type": [*inner["type"], "null"]}
    return {"anyOf": [inner, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def descriptions(cls: type[Any]) -> dict[str, str]:
    """Return field -> its description in the ``Args:`` of a class's docstring, or of its bases' docstrings."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = getdoc(base) if "__doc__" in vars(base) else None
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", doc or "", re.MULTILINE)
        for names, text in re.findall(
            r"^    (\w[\w, ]*): ((?:.*\n?)(?:^     +.*\n?)*)", section[1] if section else "", re.M
        ):
            found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def written(whole: Schema) -> str:
    """Return the schema as JSON with a line for each part and each component."""
    lines = []
    for key, value in whole.items():
        if isinstance(value, dict):
            inner = [f"  {json.dumps(name)}: {json.dumps(one, ensure_ascii=False)}" for name, one in value.items()]
            lines.append(f" {json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n }")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the schema, or write it to a file."""
    text = written(schema())
    rest = sys.argv[1:] if arguments is None else list(arguments)
    if rest:
        Path(rest[0]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
