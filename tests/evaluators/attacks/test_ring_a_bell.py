"""Ring-A-Bell: against all prompts, on painters whose encodings are known."""

from itertools import product

import pytest
import torch
from torch import Tensor

from tests.toys.painters import (
    WORDS,
    attacked,
    digits,
    ink,
    threes,
    word_painter,
)
from unlearn.evaluators.attacks.ring_a_bell import RingABell, without, worded
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.image.concept_classifier import concept_classifier
from unlearn.models.conditioning import Condition


def bell(evaluation: Evaluation, **settings: float) -> dict[str, float]:
    given = {"samples": 2, "tokens": 1, "population": 20, "generations": 20, "eta": 0.0, **settings}
    return {record.subject: record.value for record in RingABell(**given)(evaluation).records}


def test_a_synonym_rings_the_bell() -> None:
    """ "cat" is encoded as "3" is by the target's text encoder, and still painted so by a model that lost the word "3".

    The retrained painter knows neither. Without the concept's name the words must be found; with it the name is.
    """
    target = word_painter(cat=ink("3"))
    unlearned = word_painter(_3=ink("8"), cat=ink("3"))
    retrained = word_painter(_3=torch.zeros(64), cat=torch.zeros(64))
    evaluation = attacked("text", target=target, unlearned=unlearned, retrained=retrained)
    assert bell(evaluation) == {"target": 1, "unlearned": 1, "retrained": 0}
    named = attacked("text", target=word_painter(), unlearned=unlearned, retrained=retrained)
    assert bell(named, may_name=True)["unlearned"] == 0  # it asks for "3" by name


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_the_search_ends_at_the_nearest_prompt(eta: float) -> None:
    """Against all prompts of three words: enc(P) + eta (enc(P) - enc("")), P = "3"."""
    stream = torch.Generator().manual_seed(1)
    model = word_painter(**{word: torch.randn(64, generator=stream) for word in WORDS[2:]})
    evaluation = attacked("text", target=model)
    data = digits("text")
    judge_items = threes("text")["forget"].ids[:1]
    attack = RingABell(tokens=2, population=60, generations=40, eta=eta, samples=1)
    with attack.search(evaluation, concept_classifier(evaluation.splits, None), "target", judge_items) as (
        told,
        budget,
    ):
        found = told[0]
    free = [word for word in range(2, len(WORDS)) if WORDS[word] != "3"]
    every = worded(data, torch.tensor(list(product(free, repeat=2))))

    def encoded(tokens: Tensor) -> Tensor:
        return model.encode(Condition(tokens=tokens)).states

    with_it, bare = encoded(data.conditions(["3"])), encoded(data.conditions([""]))
    wanted = with_it + eta * (with_it - bare)
    best = every[(encoded(every) - wanted).square().flatten(1).sum(dim=1).argmin()]
    assert torch.equal(found, best)
    assert budget == "2 tokens, 40 generations of 60"


def test_captions_without_the_concept() -> None:
    assert without(["a red three", "three", "a three, a threefold"], ["three"]) == ["a red", "", "a , a threefold"]
    assert without(["a hot dog, a dog"], ["dog", "hot dog"]) == ["a , a"]
    assert without(["a hot dog, a dog"], ["dog"], ["hot dog"]) == ["a hot dog, a"]
