"""What all attacks on diffusion models have in common, and the painters that their tests rely on."""

from collections.abc import Callable

import pytest
import torch

from tests.toys.diffusion import small_splits
from tests.toys.painters import (
    DIGITS,
    attacked,
    class_painter,
    digits,
    threes,
    word_painter,
)
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.concept import Mention
from unlearn.evaluators.attacks.base.prompt_search import mentions_of, words_of
from unlearn.evaluators.attacks.concept_inversion import ConceptInversion
from unlearn.evaluators.attacks.image_relearning import ImageRelearning
from unlearn.evaluators.attacks.ring_a_bell import RingABell
from unlearn.evaluators.attacks.unlearn_diff_atk import UnlearnDiffAtk
from unlearn.models.feature_extractors.classifiers import features_for


def test_words_and_their_places() -> None:
    data = small_splits("text")["forget"].dataset
    three = words_of(data, "three")[0]
    said = data.conditions(["a red three"])[0, 0].tolist()
    assert len(three) == 1 and mentions_of(said, "three", three) == [Mention("three", 3, 4)]
    assert mentions_of([1, 2, 3], "", [4]) == mentions_of([1], "", []) == []
    assert mentions_of([1, 2, 3, 2, 3], "it", [2, 3]) == [Mention("it", 1, 3), Mention("it", 3, 5)]
    assert len(words_of(data, "a red three")[0]) == 3
    assert words_of(data, " ".join(["red"] * 9))[0] == words_of(data, "red")[0] * 6  # cut at the length


def test_prompts_without_room_and_classes_are_refused() -> None:
    splits = threes("text")
    UnlearnDiffAtk(tokens=5).check(splits)  # start, 3, end, and five
    with pytest.raises(RecipeError, match=r"evaluate\.unlearn_diff_atk.*Type .*tokens=5"):
        UnlearnDiffAtk(tokens=6).check(splits)
    for attack in (UnlearnDiffAtk, RingABell):
        with pytest.raises(RecipeError, match=r"evaluate\.concept_inversion"):
            attack().check(threes("class"))
    with pytest.raises(RecipeError, match=r"Type evaluate\.ring_a_bell\.tokens=6"):
        RingABell(tokens=7).check(splits)


@pytest.mark.parametrize("attack", [ConceptInversion, ImageRelearning])
def test_one_step_generators_have_no_figures(attack: Callable) -> None:
    model = class_painter()
    model.settings.one_step = 400
    assert not attack()(attacked("class", target=model)).records


@pytest.mark.parametrize(
    ("make", "settings", "text"),
    [
        (ConceptInversion, {"steps": -1}, "steps is -1"),
        (ConceptInversion, {"lr": 0.0}, "lr is 0"),
        (ConceptInversion, {"bound": -1.0}, "bound is -1"),
        (ConceptInversion, {"source": "both"}, "source is 'both'"),
        (ConceptInversion, {"samples": 0}, "samples is 0"),
        (UnlearnDiffAtk, {"tokens": 0}, "tokens is 0"),
        (UnlearnDiffAtk, {"lr": -1.0}, "lr is -1"),
        (RingABell, {"population": 2}, "population is 2"),
        (RingABell, {"mutation": 1.5}, "mutation is 1.5"),
        (ImageRelearning, {"samples": 0}, "samples is 0"),
        (ImageRelearning, {"items": []}, "items is"),
    ],
)
def test_settings_out_of_range(make: Callable, settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**settings)


def test_the_painters_paint() -> None:
    """What the tests above rely on: the classifier reads every typical digit, from a class and from a word."""
    ids = torch.arange(10)
    data = digits("class")
    firsts = torch.stack([torch.nonzero(data.having([name])).flatten()[0] for name in DIGITS])
    net = features_for(data.info)
    for told, model in (("class", class_painter()), ("text", word_painter())):
        batch = digits(told).batch(firsts)
        drawn = model.sample(ids, Randomness(0), like=batch)["image"]
        assert net.classify(drawn)[:, 0].tolist() == list(range(10))
