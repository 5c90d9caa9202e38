"""Prompts without images: which items there are, and what refuses them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.diffusion import CONFIGS
from unlearn.config.recipe import load
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.concept import Concept
from unlearn.data.conditioned import Classes, Conditioned
from unlearn.data.prompts import EVERYDAY, Prompted, PromptList
from unlearn.data.splits import make_splits
from unlearn.experiment.inputs import rehearse

THREE = Concept(
    name="three", anchor="eight", retain=["two"], templates=["a red {}", "a blue {}"], probes=["a three in red"]
)


def told(**given: Any) -> Conditioned:
    return CONFIGS["text"].read(PromptList(**given).load())  # type: ignore[return-value]


def split_captions(source: PromptList) -> dict[str, list[str]]:
    dataset: Any = source.load()
    splits = make_splits(dataset, source, Randomness(0, "splits"))
    return {name: [dataset.captions[item] for item in split.ids.tolist()] for name, split in splits.items()}


def test_items_are_the_prompts_of_concepts_and_what_is_kept(tmp_path: Path) -> None:
    """A template a forget item; the same with each retain word, the list and the file's lines; probes are held out."""
    lines = tmp_path / "kept.txt"
    lines.write_text("a green five\n\n  a white six  \na green five\n", encoding="utf-8")
    red = Concept(name="red", templates=["{} ink"])
    source = PromptList(concepts=[THREE, red], retain_prompts=["a yellow one"], retain_file=str(lines))
    assert split_captions(source) == {
        "forget": ["a red three", "a blue three", "red ink"],
        "retain": ["a red two", "a blue two", "a yellow one", "a green five", "a white six"],
        "holdout": ["a three in red"],
    }
    dataset = source.load()
    assert dataset.labels == ["three", "three", "red", "two", "two", "", "", "", "three"]
    assert dataset.prompts_only and "shape" not in dataset.info
    narrowed = PromptList(concepts=[THREE, red], forget=type(source.forget)(label=["red"]))
    assert split_captions(narrowed)["forget"] == ["red ink"]


def test_where_nothing_is_said_everyday_scenes_are_kept() -> None:
    assert split_captions(PromptList(concepts=[Concept(name="three")]))["retain"] == list(EVERYDAY)
    assert len(set(EVERYDAY)) == 20
    without = split_captions(PromptList(concepts=[Concept(name="dog"), Concept(name="cat")]))["retain"]
    assert without == [text for text in EVERYDAY if text[2:5] not in ("dog", "cat")] and len(without) == 18


def test_batches_hold_what_the_model_is_told_and_no_image() -> None:
    data = told(concepts=[THREE])
    ids = torch.arange(2)
    batch, anchored = data.batch(ids), data.form("anchor", ids)
    assert set(batch) == set(anchored) == {"id", "label", "tokens"}
    known = CONFIGS["text"].tokenizer()  # type: ignore[attr-defined]
    said = [
        known.decode(row, skip_special_tokens=True) for row in torch.cat([batch["tokens"], anchored["tokens"]])[:, 0]
    ]
    assert said == ["a red three", "a blue three", "a red eight", "a blue eight"]
    assert torch.equal(data.having_form("anchor"), data.having(["three"]))
    other = told(concepts=[THREE], retain_prompts=["a yellow one"])
    assert other.fingerprint != data.fingerprint and data.prompts_only


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs what to forget"),
        ({"concepts": [THREE], "retain_prompts": ["a red three"]}, "'a red three'.*Remove one"),
        ({"concepts": [THREE], "retain_prompts": ["a three in red"]}, "'a three in red'.*Remove one"),
        ({"concepts": [THREE], "retain_file": "no_such.txt"}, "retain_file: no_such.txt cannot be read"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PromptList(**given).load()


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text(" \n")
    with pytest.raises(RecipeError, match="holds no prompts"):
        PromptList(concepts=[THREE], retain_file=str(tmp_path / "kept.txt")).load()


def test_a_model_that_is_told_classes_takes_the_names_of_classes() -> None:
    digits = Classes(tuple("0123456789"))
    concepts = [Concept(name="3", anchor="8")]
    data = Conditioned(PromptList(concepts=concepts, retain_prompts=["4", "5"]).load(), digits)
    assert data.batch(torch.arange(3))["class"].tolist() == [3, 4, 5]
    with pytest.raises(RecipeError, match="'a bedroom with a large window' is not a class"):
        Conditioned(Prompted({"forget": [("3", "3")], "retain": [(EVERYDAY[10], "")]}, concepts), digits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["retain=training_loss"], "retain=training_loss .*Type retain=null"),
        (["forget=gradient_ascent"], "denoising_ascent, states: {source: generated}"),
        (["retain=score_preservation"], "retain.states.source=generated"),
        (["forget=denoising_ascent"], "forget.states.source=generated"),
        (["forget=random_label"], "forget.states.source=generated"),
        (["evaluate.feature_distance={}"], r"evaluate\.feature_distance .*Type evaluate\.feature_distance=null"),
        (["evaluate.image_relearning={}"], "No feature net takes data of shape"),
    ],
)
def test_what_asks_for_images_is_refused_before_any_work(settings: list[str], message: str) -> None:
    """And its remedy is taken: the control below."""
    concepts = "data.concepts=[{name: three, anchor: eight}]"
    recipe = load({"model": "text_unet", "data": "prompts", "forget": "esd"}, [concepts, *settings])
    with pytest.raises(RecipeError, match=message):
        rehearse(recipe, told(concepts=[THREE]))


def test_what_asks_for_none_is_not_refused() -> None:
    concepts = "data.concepts=[{name: three, anchor: eight}]"
    for settings in (
        ["retain={name: score_preservation, states: {source: trajectory}}"],
        ["forget={name: denoising_ascent, states: {source: generated}}"],
        ["forget={name: random_label, states: {source: generated}}"],
        ["evaluate.sample_grid={}", "evaluate.cost={}"],
    ):
        recipe = load({"model": "text_unet", "data": "prompts", "forget": "esd"}, [concepts, *settings])
        assert set(rehearse(recipe, told(concepts=[THREE]))) == {"forget", "retain", "holdout"}


def test_a_new_model_cannot_be_trained_on_prompts() -> None:
    with pytest.raises(RecipeError, match=r"prompts alone. Give images, or a trained one: model.pretrained"):
        CONFIGS["text"].build(told(concepts=[THREE]).info, Randomness(0, "new"))
