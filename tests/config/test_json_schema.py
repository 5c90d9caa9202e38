"""The schema for editors is current, takes every packaged recipe, and marks what a recipe may not hold."""

import json
import re
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import yaml

from unlearn.config import packaged
from unlearn.config.json_schema import descriptions, main
from unlearn.config.schema import Gate


class Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does, as editors do: 1e-4 is one."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)

FILE = files("unlearn.recipes") / "recipe.schema.json"
SCHEMA: Any = json.loads(FILE.read_text(encoding="utf-8"))


def errors(recipe: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(recipe)]


def test_the_schema_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    """Else: python -m unlearn.config.json_schema recipes/recipe.schema.json"""
    assert main([]) == 0 and capsys.readouterr().out == FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(packaged._packaged("recipe")))
def test_every_packaged_recipe_validates(name: str) -> None:
    text = packaged._packaged("recipe")[name].read_text(encoding="utf-8")
    assert errors(yaml.load(text, Loader=Loader)) == []


@pytest.mark.parametrize(
    ("recipe", "right"),
    [
        ("forget: {name: taming, threshold: 3}", True),
        ("forget: {name: taming, treshold: 3}", False),
        ("forget: tamin", False),
        ("forget: my_package.module:Class", True),
        ("forget: {taming: {weight: 1}, debias: null}", True),
        ("forget: {taming: {wieght: 1}}", False),
        ("optim: {lr: 1e-4, name: adamw}", True),
        ("optim: {lr: '${pretrain.optim.lr}'}", True),
        ("optim: {lr: fast}", False),
        ("optim: {name: adagrad}", False),
        ("optm: {}", False),
        ("data: {name: digits, forget: {label: 3}}", True),
        ("evaluate: {bits_per_dim: {draws: 2}, own: {name: cost}}", True),
        ("evaluate: {bits_per_dim: {drows: 2}}", False),
        ("evaluate: {own: {name: bits_per_dim, drows: 2}}", False),
        ("gate: {x: {metric: m, max: 1}}", True),
        ("gate: {x: {metrik: m}}", False),
        ("gate: {x: {metric: m, split: forget, minus: target}}", True),
        ("gate: {x: {metric: m, split: forgotten}}", False),
        ("gate: {x: {metric: m, minus: targte}}", False),
        ("seed: [0, 1]", True),
        ("evaluate: {bits_per_dim: {draws: 0}}", False),
        ("evaluate: {relearning: {lr: 0}}", False),
        ("evaluate: {relearning: {lr: 1e-4, items: [1, 2], steps: 0}}", True),
        ("evaluate: {relearning: {items: [0]}}", False),
        ("evaluate: {relearning: {items: [2, 2]}}", False),
        ("evaluate: {relearning: {items: []}}", False),
        ("evaluate: {relearning: {lr: '${optim.lr}'}}", True),
        ("evaluate: {rouge: {items: null}}", True),
        ("distil: {name: sfd, optim: {steps: 2}, seed: 1, weight: 2}", True),
        ("distil: {name: sfd, optm: {}}", False),
        ("distil: {name: sfd, train: often}", False),
        ("distil: {name: sfd, weight: often}", False),
        ("distil: {name: my_package.Class, own: 1}", True),
        ("distil: {seed: 3}", True),
    ],
)
def test_an_editor_is_told(recipe: str, right: bool) -> None:
    assert (errors(yaml.load(recipe, Loader=Loader)) == []) == right


def test_settings_are_described_by_the_docstring() -> None:
    assert descriptions(Gate)["metric"] == "metric name."
    assert SCHEMA["definitions"]["objective.npo"]["properties"]["beta"]["description"]
    every = [one for name, one in SCHEMA["definitions"].items() if "properties" in one]
    assert len(every) > 100
