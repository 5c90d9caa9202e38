"""From files and arguments to a built recipe, and what each mistake is told."""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from unlearn.config import packaged
from unlearn.config.recipe import load
from unlearn.config.schema import Recipe
from unlearn.config.yaml_io import dump, parse
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

OWN = """
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Optional
from unlearn.objectives.base import Objective, Values

@dataclass
class Inner:
    size: int = 1
    names: list[str] = field(default_factory=list)

@dataclass(frozen=True)
class FrozenInner:
    size: int = 1

@dataclass(frozen=True, kw_only=True)
class Own(Objective):
    text: str = "x"
    texts: list[str] = field(default_factory=list)
    more: tuple[int, ...] = ()
    pair: tuple[float, str] = (1.0, "a")
    flag: bool = False
    maybe: Optional[bool] = None
    choice: Literal["a", "12", 3] = "a"
    number: int | float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    frozen: FrozenInner = field(default_factory=FrozenInner)
    option: Inner | None = None
    many: list[Inner] = field(default_factory=list)
    by_name: dict[str, Inner] = field(default_factory=dict)
    needed: str = "???"
    constant: ClassVar[int] = 3
    def __post_init__(self):
        super().__post_init__()
        if self.text == "bad":
            raise ValueError("text is bad; it must be good")
        if self.text == "crash":
            raise KeyError("a mistake in the class itself")
    def __call__(self, model, batch, context):
        return Values(batch["id"])

@dataclass(frozen=True, kw_only=True)
class Unwritable(Objective):
    made: complex | list[Inner] | None = None
    def __call__(self, model, batch, context):
        return Values(batch["id"])
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory):
    """Return the path of a user's objective that has a field of every type."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "recipe_own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "recipe_own:Own"


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


# ---------------------------------------------------------------------------------------------- what is read


def test_a_recipe_is_built(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "my recipe.yaml", TEXT))
    assert recipe.name == "my_recipe"
    assert type(recipe.model).__name__ == "GlowConfig" and recipe.model.depth == 2
    assert recipe.data.forget.label == ["3"]
    assert list(recipe.forget) == ["taming"] and recipe.forget["taming"].threshold == 3.0
    assert type(recipe.combine).__name__ == "WeightedSum" and type(recipe.scope).__name__ == "All"
    assert recipe.seeds == [0] and recipe.evaluate == {} and recipe.gate == {} and recipe.output is None


def test_file_mapping_and_arguments_say_the_same(tmp_path: Path) -> None:
    arguments = [f"{part}={{{', '.join(f'{k}: {v}' for k, v in SMALL[part].items())}}}" for part in ("model", "retain")]
    arguments += ["data=digits", "data.forget.label=3", "forget=taming", "forget.threshold=3", "forget.weight=0.6"]
    from_file = load(write(tmp_path, "recipe.yaml", TEXT))
    assert same(from_file, load(SMALL)) and same(from_file, load({}, arguments))
    assert not same(from_file, load(SMALL, ["forget.weight=0.7"]))


@pytest.mark.parametrize("name", packaged.names("recipe"))
def test_every_packaged_recipe_is_sound(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.about.title and recipe.about.method and recipe.about.needs
    first = packaged._packaged("recipe")[name].read_text().splitlines()
    assert first[0].startswith("# ") and any(f"python -m unlearn.run recipe={name}" in line for line in first[:4])


def test_the_resolved_recipe_is_complete_and_loads_again() -> None:
    arguments = [
        "seed=[3,1]",
        "gate.kept={metric: bits_per_dim, max: 2, about: {category: no}}",
        "about.title=$${a} 1:30",
    ]
    recipe = load("quickstart", arguments)
    assert recipe.about.title == "${a} 1:30" and recipe.gate["kept"].about == {"category": "no"}
    assert recipe.tree["optim"]["betas"] == [0.9, 0.999] and recipe.tree["pretrain"]["optim"]["ema"] is None
    assert same(recipe, load(recipe.tree))
    assert same(recipe, load(parse(dump(recipe.tree, recipe.origins), "recipe.yaml")))  # type: ignore[arg-type]


def test_origins_name_the_nearest_writer(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", TEXT)
    path = write(tmp_path, "child.yaml", "base: base.yaml\noptim: {lr: 1e-3}\n")
    origins = load(path, ["optim.steps=7", "seed=[1,2]"]).origins
    assert origins["model.depth"] == str(tmp_path / "base.yaml")
    assert origins["optim.lr"] == str(path)
    assert origins["optim.steps"] == origins["seed"] == "command line"
    assert origins["optim.batch"] == origins["scope.name"] == "default"
    assert set(origins) == {".".join(key) for key in leaves(load(path).tree)}


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in tree.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)]
    return found


def test_the_hash_is_of_what_can_change_the_result(tmp_path: Path) -> None:
    recipe = load(SMALL)
    for argument in ("output=/tmp/x", "name=other", "about.title=t", "trainer.workers=2"):
        assert load(SMALL, [argument]).hash == recipe.hash, argument
    for argument in ("seed=1", "optim.lr=1", "trainer.devices=2", "trainer.log_every=3", "forget.weight=0.61"):
        assert load(SMALL, [argument]).hash != recipe.hash, argument
    assert load(write(tmp_path, "a.yaml", TEXT)).hash == recipe.hash
    assert re.fullmatch("[0-9a-f]{64}", recipe.hash)


# ---------------------------------------------------------------------------------------------- tables of settings

TABLES = """
tables:
  published:
    taming: {forget: {threshold: 5}, retain: {weight: 0.7}, optim: {lr: 0.1, steps: 7}}
    likelihood_ascent: {retain: {name: weight_anchor, strength: 0.5}, optim: {lr: 0.2}}
    task_vector: {edit: {alpha: 3}}
  tuned:
    taming: {forget: {threshold: 6}}
settings: published
"""


@pytest.fixture
def tabled(tmp_path: Path) -> Path:
    """A recipe with two tables of settings."""
    return write(tmp_path, "tabled.yaml", TEXT + TABLES)


def test_settings_take_the_methods_entry_from_a_table(tabled: Path) -> None:
    recipe = load(tabled)
    assert (recipe.forget["taming"].threshold, recipe.forget["taming"].weight) == (5.0, 0.6)
    assert (recipe.retain["taming_retain"].weight, recipe.optim.lr, recipe.optim.steps) == (0.7, 0.1, 7)
    assert recipe.origins["optim.lr"] == recipe.origins["retain.weight"] == "tables.published.taming"
    assert recipe.origins["forget.weight"] == str(tabled) and recipe.origins["optim.batch"] == "default"
    assert not {"tables", "settings"} & set(recipe.tree)
    assert load(tabled, ["settings=tuned"]).forget["taming"].threshold == 6.0
    other = load(tabled, ["forget=likelihood_ascent"])
    assert (list(other.retain), other.retain["weight_anchor"].strength, other.optim.lr) == (["weight_anchor"], 0.5, 0.2)
    assert load(tabled, ["edit=task_vector", "forget=null"]).tree["edit"]["alpha"] == 3.0


def test_the_hash_of_settings_is_that_of_their_result(tabled: Path) -> None:
    plain = load(tabled, ["settings=null"])
    assert plain.forget["taming"].threshold == 3.0
    spelt = ["settings=null", "forget.threshold=5", "retain.weight=0.7", "optim.lr=0.1", "optim.steps=7"]
    assert load(tabled, spelt).hash == load(tabled).hash == load(load(tabled).tree).hash != plain.hash


def test_what_is_said_above_a_table_stands(tabled: Path) -> None:
    """The command line, a call, and a file that builds on the one with the table; a component of another name too."""
    assert load(tabled, ["optim.lr=3"]).optim.lr == 3.0
    above = write(tabled.parent, "above.yaml", "base: tabled.yaml\noptim: {lr: 3}\n")
    for recipe in (load(above), load({"base": str(tabled), "optim": {"lr": 3}})):
        assert (recipe.optim.lr, recipe.optim.steps) == (3.0, 7)
    kept = load(tabled, ["retain=training_loss"])
    assert (list(kept.retain), kept.retain["training_loss"].weight) == (["training_loss"], 0.7)
    other = load(tabled, ["forget=likelihood_ascent", "retain=training_loss"])
    assert (list(other.retain), other.optim.lr) == (["training_loss"], 0.2)
    assert load(tabled, ["retain=null"]).retain == {}


def test_settings_that_are_not_there_are_refused(tabled: Path) -> None:
    assert "Did you mean: tuned?" in refused(tabled, "settings=tund")
    assert "holds nothing for debias. Methods that have an entry: taming, likeli" in refused(tabled, "forget=debias")
    assert "entry: taming. Take" in refused(tabled, "settings=tuned", "forget=likelihood_ascent")
    assert "no tables of settings" in refused(SMALL, "settings=published")
    assert "one forget objective" in refused(tabled, "forget={taming: {}, debias: {}}")
    assert "write forget=NAME, or edit=NAME" in refused(tabled, "forget=null")


# ------------------------------------------------------------------------------------------- YAML 1.1's traps


@pytest.mark.parametrize(
    "trap", ["no", "on", "1:30", "012", "0x10", "1_000", "true", "2024-01-01", "1e3", "NULL", "'null'"]
)
def test_a_label_is_the_text_that_was_written(tmp_path: Path, trap: str) -> None:
    path = write(tmp_path, "recipe.yaml", TEXT.replace("label: [3]", f"label: [{trap}]"))
    label = trap.strip("'")
    recipe = load(path)
    assert recipe.data.forget.label == [label]
    assert load(SMALL, [f"data.forget.label={trap}"]).data.forget.label == [label]
    assert load(SMALL, [f"data.forget.label=[{trap}]"]).data.forget.label == [label]
    assert same(recipe, load(write(tmp_path, "again.yaml", dump(recipe.tree)), ["name=recipe"]))


@pytest.mark.parametrize("value", ["null", "~", ""])
def test_null_switches_an_option_off(value: str) -> None:
    assert load({**SMALL, "optim": {"clip": 1}}, [f"optim.clip={value}"]).optim.clip is None


NO_BOOLS = ("yes", "no", "on", "off", "1", "0", "", "[true]")
NO_WHOLE_NUMBERS = ("1.5", "0x10", "1e3", "1_0", "012", "x", "true", "٣")
NO_NUMBERS = ("nan", "inf", "-inf", "1e999", "x", "1_0.0", "true", "[1]")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        *[(f"model.train={word}", "must be true or false") for word in NO_BOOLS],
        *[(f"optim.steps={word}", "must be a whole number") for word in NO_WHOLE_NUMBERS],
        *[(f"optim.lr={word}", "must be a number") for word in NO_NUMBERS],
        (f"optim.steps={10**30}", "must be a whole number"),
        ("optim.lr={a: 1}", "optim.lr is {'a': '1'} (command line); it must be a number"),
        ("optim.clip=off", "must be a number or null"),
        ("optim.betas=[0.9]", "must be a list of 2"),
        ("optim.betas=0.9", "must be a list of 2"),
        ("optim.name=adagrad", "must be one of adam, adamw, sgd"),
        ("data.forget.label=[[a]]", "data.forget.label[0] is ['a'] (command line); it must be text"),
        ("data.forget.ids=[1, x]", "data.forget.ids[1] is 'x' (command line); it must be a whole number"),
        ("data.forget=3", "data.forget is '3' (command line); it must be a mapping of label"),
        ("optim=[1]", "optim is ['1'] (command line); it must be a mapping"),
        ("model=[glow]", "model is ['glow'] (command line); it must be a name or a mapping with one"),
        ("evaluate=[cost]", "evaluate is ['cost'] (command line); it must be a mapping"),
        ("about.title=[a]", "must be text"),
        ("gate.x=3", "gate.x is '3' (command line); it must be a mapping"),
        ("model.pretrained=???", "model.pretrained has no value"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_with_key_and_value(argument: str, message: str) -> None:
    found = refused(SMALL, argument)
    assert message in found and argument.partition("=")[0] in found


def test_numbers_are_read_from_text() -> None:
    optim = load(
        SMALL, ["optim.lr=1e-4", "optim.clip=5", "optim.weight_decay=.5", "optim.steps=+7", "optim.betas=[0, 0.5]"]
    ).optim
    assert (optim.lr, optim.clip, optim.weight_decay, optim.steps, optim.betas) == (1e-4, 5.0, 0.5, 7, (0.0, 0.5))
    assert load(SMALL, ["model.train=TRUE"]).model.train is True


# --------------------------------------------------------------------------------------------- unknown things


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("forgt.weight=1", "a recipe has no part 'forgt' (command line). Did you mean: forget, corrupt?"),
        ("lr=1", "Did you mean: optim.lr?"),
        ("optim.lrr=1", "there is no key 'optim.lrr' (command line). Did you mean: lr?"),
        ("forget.treshold=1", "there is no key 'forget.treshold' (command line). Did you mean: threshold"),
        ("data.forget.labels=1", "there is no key 'data.forget.labels' (command line). Did you mean: label?"),
        ("pretrain.optim.step=1", "there is no key 'pretrain.optim.step' (command line). Did you mean: steps?"),
        ("trainer.device=1", "there is no key 'trainer.device' (command line). Did you mean: devices?"),
        ("model=glw", "model (command line): there is no model 'glw'"),
        ("combine=pcgrd", "Did you mean: pcgrad"),
        ("scope=al", "Did you mean: all?"),
        ("forget=tamin", "Did you mean: taming"),
        ("evaluate.bits_per_dime={}", "Did you mean: bits_per_dim"),
        ("evaluate.cost.bogus=1", "there is no key 'evaluate.cost.bogus'"),
        ("gate.x={metric: a, maxx: 1}", "there is no key 'gate.x.maxx' (command line). Did you mean: max"),
        ("gate.x.max=1", "gate.x.metric has no value; write gate.x.metric=..."),
        ("base=quickstart", "a recipe has no part 'base'"),
        ("forget.name=null", "forget has no name"),
        ("forget=null", "has no forget part"),
        ("model=null", "model has no name"),
        ("forget={threshold: 3, name: [a]}", "forget is called ['a']"),
    ],
)
def test_an_unknown_name_is_told_the_near_ones(argument: str, message: str) -> None:
    assert message in refused(SMALL, argument)


@pytest.mark.parametrize("argument", ["a", "=1", "a.=1", ".a=1", "a..b=1", "", "seed=[1", "seed={", "seed='"])
def test_what_is_no_setting(argument: str) -> None:
    assert "no setting" in (message := refused(SMALL, argument)) or "is no valid YAML" in message


def test_unknown_recipes_and_files(tmp_path: Path) -> None:
    assert "Did you mean: quickstart?" in refused("quickstrt")
    assert "there is no recipe file" in refused(tmp_path / "none.yaml")
    assert "there is no recipe file" in refused(str(tmp_path / "x\0.yaml"))
    assert "cannot be read" in refused("x" * 5000 + ".yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "there is no recipe file" in refused(tmp_path / "folder.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"about: {title: caf\xe9}")
    assert "cannot be read" in refused(tmp_path / "latin.yaml")
    assert "bytes are too many" in refused(write(tmp_path, "large.yaml", "a" * 3_000_000))
    assert "must hold a mapping" in refused(write(tmp_path, "list.yaml", "- 1"))
    assert "must hold a mapping" in refused(write(tmp_path, "empty.yaml", ""))


def test_what_a_recipe_needs() -> None:
    for part in ("model", "data", "forget"):
        assert part in refused({key: value for key, value in SMALL.items() if key != part})
    assert load({key: value for key, value in SMALL.items() if key != "retain"}).retain == {}


# ----------------------------------------------------------------------------------------------- inheritance


def test_bases_are_merged_in_order_and_later_wins(tmp_path: Path) -> None:
    write(tmp_path, "parts/a.yaml", TEXT + "optim: {lr: 1, steps: 1, batch: 1}\n")
    write(tmp_path, "parts/b.yaml", "optim: {lr: 2, steps: 2}\n")
    child = write(tmp_path, "child.yaml", "base: [parts/a.yaml, parts/b.yaml]\noptim: {lr: 3}\n")
    optim = load(child).optim
    assert (optim.lr, optim.steps, optim.batch) == (3.0, 2, 1)
    assert load({"base": str(child), "optim": {"steps": 9}}).optim.steps == 9
    write(tmp_path, "parts/drop.yaml", "evaluate: {cost: null}\n")
    lighter = {"base": [str(child), str(tmp_path / "parts/drop.yaml")]}
    write(tmp_path, "parts/a.yaml", TEXT + "evaluate: {cost: {}, goal: {}}\n")
    assert list(load(child).evaluate) == ["cost", "goal"] and list(load(lighter).evaluate) == ["goal"]
    assert load({"base": "quickstart"}).name == "quickstart"


def test_circles_and_missing_bases_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n" + TEXT)
    write(tmp_path, "b.yaml", "base: sub/../a.yaml\n")
    (tmp_path / "sub").mkdir()
    assert "goes round in a circle" in refused(tmp_path / "a.yaml")
    assert "there is no recipe file" in refused(write(tmp_path, "c.yaml", "base: absent.yaml"))
    assert "there is no recipe 'quickstat'. Did you mean: quickstart?" in refused({"base": "quickstat"})
    assert "it must be a recipe or a list" in refused({"base": [["quickstart"]]})
    assert "it must be a recipe or a list" in refused({"base": {"a": 1}})
    for level in range(8):
        below = "" if level == 0 else f"base: [{', '.join([f'l{level - 1}.yaml'] * 4)}]"
        write(tmp_path, f"l{level}.yaml", below or TEXT)
    assert "files are read through 'base:'" in refused(tmp_path / "l7.yaml")
    assert "files are read through 'base:'" in refused({"base": ["quickstart"] * 40})
    assert "there is no recipe file" in refused({"base": "~nobody_of_this_name/x.yaml"})


def test_another_component_starts_from_its_own_defaults() -> None:
    base = {"base": "flow/category_digits"}
    assert load(base).forget["category_taming"].weight == 0.03
    assert load({**base, "forget": {"threshold": 2}}).forget["category_taming"].weight == 0.03, "same: merged"
    assert (
        load({**base, "forget": {"name": "category_taming", "threshold": 2}}).forget["category_taming"].weight == 0.03
    )
    assert load({**base, "forget": "category_taming"}).forget["category_taming"].weight == 1.0, "bare: its defaults"
    for other in ("likelihood_ascent", {"name": "likelihood_ascent"}, {"likelihood_ascent": {}}):
        assert load({**base, "forget": other}).forget["likelihood_ascent"].weight == 1.0
    recipe = load(
        "flow/category_digits", ["forget=likelihood_ascent", "forget.weight=2", "combine=gru", "combine.gamma=0.5"]
    )
    assert recipe.forget["likelihood_ascent"].weight == 2.0 and recipe.combine.gamma == 0.5
    assert "there is no key 'forget.threshold'" in refused(
        {**base, "forget": "likelihood_ascent"}, "forget.threshold=1"
    )


def test_several_terms() -> None:
    several = {**SMALL, "retain": {"taming_retain": {"weight": 0.4}, "anchor": {"name": "weight_anchor", "weight": 3}}}
    recipe = load(several)
    assert {name: term.weight for name, term in recipe.retain.items()} == {"taming_retain": 0.4, "anchor": 3.0}
    assert same(recipe, load(recipe.tree))
    assert (
        recipe.tree["retain"]["anchor"]["name"] == "weight_anchor"
        and "name" not in recipe.tree["retain"]["taming_retain"]
    )
    assert list(load(several, ["retain.anchor=null"]).retain) == ["taming_retain"]
    assert load(several, ["retain.anchor.weight=4"]).retain["anchor"].weight == 4.0
    assert list(load(several, ["retain=training_loss"]).retain) == ["training_loss"]
    assert list(load(several, ["retain.third={name: training_loss}"]).retain) == ["taming_retain", "anchor", "third"]
    assert "retain is one objective, taming_retain" in refused(SMALL, "retain.weight_anchor.weight=1")
    assert "there is no objective 'ancor'" in refused(several, "retain.ancor={name: ancor}")
    assert "retain names no objective" in refused({**SMALL, "retain": {"weight": 1}})


def test_evaluators_and_gates_can_be_dropped_but_not_by_mistake() -> None:
    base = {**SMALL, "evaluate": {"cost": {}, "goal": {}}, "gate": {"a": {"metric": "x", "min": 1}}}
    assert list(load(base).evaluate) == ["cost", "goal"]
    assert list(load(base, ["evaluate.goal=null", "gate.a=null"]).evaluate) == ["cost"]
    assert load(base, ["evaluate=null", "gate=null"]).evaluate == {}
    assert "nothing to drop; for its defaults write bits_per_dim: {}" in refused(base, "evaluate.bits_per_dim=null")
    assert "nothing to drop" in refused({**SMALL, "evaluate": {"cost": None}}), "an empty entry in YAML"
    twice = load(base, ["evaluate.again={name: cost}"])
    assert type(twice.evaluate["again"]) is type(twice.evaluate["cost"]) and same(twice, load(twice.tree))


def test_null_resets_a_part_to_its_defaults() -> None:
    assert load({**SMALL, "optim": {"steps": 7}}, ["optim=null"]).optim.steps == load(SMALL).optim.steps
    assert type(load({**SMALL, "combine": "gru"}, ["combine=null"]).combine).__name__ == "WeightedSum"


# ------------------------------------------------------------------------------------------------ references


def test_references_stand_for_values_of_the_recipe() -> None:
    arguments = ["pretrain.optim.steps=${optim.batch}", "about.title=${model.name} in ${ optim.steps } steps"]
    recipe = load({**SMALL, "optim": {"steps": 30, "batch": "${optim.steps}"}}, arguments)
    assert recipe.pretrain.optim.steps == recipe.optim.batch == 30
    assert recipe.about.title == "glow in 30 steps"
    assert recipe.origins["optim.batch"] == "call" and recipe.tree["optim"]["batch"] == 30
    assert load(SMALL, ["data.holdout.label=${data.forget.label}"]).data.holdout.label == ["3"]


@pytest.mark.parametrize(
    "text", ["$${optim.lr}", "a$${", "$$${x}", "$${$${", "\\$${x}", "\\\\$${", "$$", "$", "${\u00e9}"[:1]]
)
def test_the_characters_of_a_reference_can_be_written(text: str) -> None:
    recipe = load(SMALL, [f"about.title={text}", f"data.forget.label=['{text}']"])
    meant = text.replace("$${", "${")
    assert recipe.about.title == meant and recipe.data.forget.label == [meant]
    assert same(recipe, load(recipe.tree))


def chained(form: str, count: int) -> list[str]:
    """Return settings that each refer to the one before, as often as the form has places."""
    places = [f"${{gate.g{number}.metric}}" for number in range(count)]
    return [f"gate.g{n}.metric={form.format(*[places[n - 1]] * form.count('{}'))}" for n in range(1, count)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.lr=${optim.lrr}"], "optim.lr: the recipe gives no value under optim.lrr"),
        (["optim.lr=${forget}"], "gives no value under forget"),
        (["optim.lr=${optim.lr}"], "circle"),
        (["optim.lr=${optim.clip}", "optim.clip=${optim.lr}"], "circle"),
        (["about.title=a ${ b"], "starts a reference"),
        (["about.title=${oc.env:HOME}"], "starts a reference"),
        (["about.title=${}"], "starts a reference"),
        (["about.title=x${data.forget.label}"], "only text can stand within text"),
        (["gate.g0.metric=${gate.g60.metric}", *chained("{}", 61)], "too deep"),
        (["gate.g0.metric=xxxxxxxxxx", *chained("{}{}{}{}{}{}{}{}{}{}", 20)], "grow over"),
        (["gate.g0.metric=[a, b, c]", *chained("['{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}']", 20)], "grow over"),
    ],
)  # fmt: skip
def test_references_that_cannot_be_followed(arguments: list[str], message: str) -> None:
    assert message in refused({"name": "first", **SMALL}, *arguments)


# ---------------------------------------------------------------------------------------- a user's own classes


def test_every_type_of_field(own: str) -> None:
    forget = {
        "name": own, "weight": 2, "text": "no", "texts": "1:30", "more": [1, 2], "pair": [2, "on"], "flag": True,
        "maybe": "false", "choice": 3, "number": 5, "rates": {"a.b": 1}, "inner": {"size": 2, "names": ["x"]},
        "frozen": {"size": 3}, "option": {"size": 4}, "many": [{"size": 5}],
        "by_name": {"k": {"size": 6}}, "needed": "y",
    }  # fmt: skip
    recipe = load({**SMALL, "forget": forget})
    term = recipe.forget["Own"]
    assert asdict(term) == {
        "weight": 2.0, "text": "no", "texts": ["1:30"], "more": (1, 2), "pair": (2.0, "on"), "flag": True,
        "maybe": False, "choice": 3, "number": 5, "rates": {"a.b": 1.0}, "inner": {"size": 2, "names": ["x"]},
        "frozen": {"size": 3}, "option": {"size": 4, "names": []}, "many": [{"size": 5, "names": []}],
        "by_name": {"k": {"size": 6, "names": []}}, "needed": "y",
    }  # fmt: skip
    assert type(term.option).__name__ == type(term.many[0]).__name__ == "Inner"
    assert same(recipe, load(recipe.tree))
    with pytest.raises(AttributeError):  # frozen
        term.weight = 3
    assert load({**SMALL, "forget": {**forget, "number": 0.5}}).forget["Own"].number == 0.5
    assert load({**SMALL, "forget": {**forget, "choice": 12}}).forget["Own"].choice == "12"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("forget.text=bad", "forget.text is bad; it must be good"),
        ("forget.weight=-1", "forget.weight is -1.0; it must be >= 0"),
        ("forget.needed=???", "forget.needed has no value (command line); write forget.needed="),
        ("forget.constant=4", "there is no key 'forget.constant'"),
        ("forget.inner.siz=4", "there is no key 'forget.inner.siz' (command line). Did you mean: size"),
        ("forget.many=[{siz: 4}]", "there is no key 'forget.many[0].siz' (command line). Did you mean: size"),
        ("forget.by_name.k=4", "forget.by_name.k is '4' (command line); it must be a mapping of size, names"),
        ("forget.rates={a: x}", "forget.rates.a is 'x' (command line); it must be a number"),
        ("forget.pair=[a, b]", "forget.pair[0] is 'a' (command line); it must be a number"),
        ("forget.number=x", "it must be a whole number or a number or null"),
        ("forget.inner=null", ""),
    ],
)  # fmt: skip
def test_mistakes_in_an_own_class(own: str, argument: str, message: str) -> None:
    recipe = {**SMALL, "forget": {"name": own, "needed": "y"}}
    if not message:
        assert load(recipe, [argument]).forget["Own"].inner.size == 1, "null: the defaults"
    else:
        assert message in refused(recipe, argument)


def test_a_value_that_must_be_given(own: str) -> None:
    assert "forget.needed has no value; write forget.needed=..." in refused({**SMALL, "forget": own})


def test_a_class_that_no_recipe_can_hold(own: str) -> None:
    assert "the fields of Unwritable cannot be written" in refused({**SMALL, "forget": "recipe_own:Unwritable"})


# ---------------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    "argument",
    [
        "optim.lr=0", "optim.lr=-1", "optim.steps=0", f"optim.steps={2**32}", "optim.batch=0", "optim.forget_batch=0",
        "optim.accumulate=0", "optim.clip=0", "optim.weight_decay=-1", "optim.momentum=1", "optim.warmup=1",
        "optim.betas=[1, 0.9]", "optim.ema=1", "optim.ema=0", "trainer.devices=0", "trainer.workers=-1",
        "trainer.log_every=0", "trainer.checkpoint_every=0", "trainer.threads=0", "pretrain.seed=-1",
        "gate.x={metric: a}", "gate.x={metric: a, min: 2, max: 1}", "seed=-1", "seed=[]", "seed=[1,1]", f"seed={2**31}",
        "output=''", "name=../x", "name=", "name=/x", "name=a//b",
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(argument: str) -> None:
    key = argument.partition("=")[0]
    assert key in refused(SMALL, argument)


def test_values_at_the_edge_are_taken() -> None:
    arguments = ["optim.steps=1", "optim.warmup=0", "optim.momentum=0.99", "optim.ema=0.999", "trainer.workers=0"]
    arguments += [f"seed=[0, {2**31 - 1}]", "gate.x={metric: a, min: 1, max: 1}", "name=a/b.c-d_1"]
    recipe = load(SMALL, arguments)
    assert recipe.seeds == [0, 2**31 - 1] and recipe.name == "a/b.c-d_1"


def test_scaled_half_precision_is_refused_with_the_reason() -> None:
    assert "Take bf16-mixed" in refused(SMALL, "trainer.precision=16-mixed")
    assert load(SMALL, ["trainer.precision=bf16-mixed"]).trainer.precision == "bf16-mixed"


# ------------------------------------------------------------------------------------- whose figure is meant


TWO = {**SMALL, "evaluate": {"a": {"name": "bits_per_dim", "draws": 1}, "b": {"name": "bits_per_dim"}, "cost": {}}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate.x={metric: bits_per_dim, max: 1}"], "write gate.x.evaluator=NAME. Allowed: a, b."),
        (["select={metric: bits_per_dim}"], "write select.evaluator=NAME. Allowed: a, b."),
        (["gate.x={metric: bits_per_dim, max: 1, evaluator: aa}"], "gate.x.evaluator is 'aa'. Did you mean: a?"),
        (["select={metric: nothing}"], "select.metric is 'nothing'"),
        (["select={every: 3}"], "select.metric has no value"),
    ],
)
def test_a_figure_of_several_entries_is_refused_with_their_keys(arguments: list[str], message: str) -> None:
    assert message in refused(TWO, *arguments)


def test_a_figure_of_one_entry_needs_no_key() -> None:
    recipe = load(TWO, ["evaluate.b=null", "gate.x={metric: bits_per_dim, max: 1}", "select={metric: bits_per_dim}"])
    assert recipe.select is not None and recipe.select.evaluator == "a" and same(recipe, load(recipe.tree))
    assert load(TWO, ["gate.x={metric: bits_per_dim, max: 1, evaluator: b}"]).gate["x"].evaluator == "b"
