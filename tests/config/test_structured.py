"""Values and keys of each component: their types, their ranges, and what each mistake is told."""

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.toys.glow_recipe import SMALL, TEXT, refused, same, write
from unlearn.config.recipe import load
from unlearn.config.yaml_io import dump

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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("forgt.weight=1", "a recipe has no part 'forgt' (command line). Did you mean: forget, corrupt?"),
        ("lr=1", "Did you mean: optim.lr?"),
        ("optim.lrr=1", "there is no key 'optim.lrr' (command line). Did you mean: lr?"),
        ("forget.treshold=1", "there is no key 'forget.treshold' (command line). Did you mean: threshold"),
        ("data.forget.labels=1", "there is no key 'data.forget.labels' (command line). Did you mean: label?"),
        ("pretrain.optim.step=1", "there is no key 'pretrain.optim.step' (command line). Did you mean: steps?"),
        ("data.label=1", "Did you mean: data.forget.label, data.retain.label, data.holdout.label?"),
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
