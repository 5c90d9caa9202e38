"""Relearning of images, on painters whose rows are their weights."""

import pytest
import torch

from tests.toys.painters import (
    attacked,
    bits,
    class_painter,
    threes,
)
from tests.toys.scripted import value
from unlearn.core.errors import RecipeError
from unlearn.evaluators.attacks.image_relearning import ImageRelearning


def test_relearning_brings_the_image_back() -> None:
    """The painter's rows are its weights: training on threes moves the row of the three to their mean, and no other.

    At 0 steps nothing was trained; a rate of nearly 0 (the control) brings nothing back. The subjects stay as they are.
    """
    evaluation = attacked("class", target=class_painter(), unlearned=class_painter(_3="8"))
    before = bits(evaluation.models["unlearned"])
    findings = ImageRelearning(items=[4], steps=[0, 100], lr=0.05, samples=4)(evaluation)
    found = {(r.subject, r.about["budget"]): r.value for r in findings.records}
    assert found == {
        ("target", "4 items, 0 steps"): 1,
        ("target", "4 items, 100 steps"): 1,
        ("unlearned", "4 items, 0 steps"): 0,
        ("unlearned", "4 items, 100 steps"): 1,
    }
    assert {r.metric for r in findings.records} == {"attack_relearning"}
    assert [picture.name for picture in findings.pictures] == ["relearning"]
    after = evaluation.models["unlearned"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    weak = ImageRelearning(items=[4], steps=[100], lr=1e-6, samples=4)(evaluation).records
    assert value(weak, "attack_relearning", subject="unlearned") == 0


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"500.*Type evaluate\.image_relearning\.items=\[1\]"):
        ImageRelearning(items=[500]).check(threes("class"))
