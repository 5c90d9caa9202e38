"""References from one value of a recipe to another."""

import pytest

from tests.toys.glow_recipe import SMALL, refused, same
from unlearn.config.recipe import load


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
