"""A prompt that is typed to be kept counts, or is refused: the edits leave none out without a word."""

from typing import Any

import pytest

from tests.toys.diffusion import small_model
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.concept import Concept
from unlearn.data.prompts import PromptList
from unlearn.data.splits import make_splits
from unlearn.objectives.edits.rece import RECE
from unlearn.objectives.edits.uce import UCE


def kept(concepts: list[Concept], prompts: list[str], edit: Any = None) -> int:
    """Return the number of prompts that stay beside the empty one."""
    model, source = small_model("text"), PromptList(concepts=concepts, retain_prompts=prompts)
    splits = make_splits(model.read(source.load()), source, Randomness(0, "splits"))
    return (edit or UCE()).requests(model, splits)[1].count - 1


def test_a_kept_prompt_that_names_a_concept_is_refused() -> None:
    """ "one" alone is forgotten; "a red one" is kept where the data say that it is a name of its own."""
    said = r"'a red one'.*says 'one'.*add that name to retain"
    with pytest.raises(RecipeError, match=said):
        kept([Concept(name="one", anchor="two")], ["a red one", "a three"])
    with pytest.raises(RecipeError, match=said):
        kept([Concept(name="one", anchor="two")], ["a red one"], RECE().uce)
    assert kept([Concept(name="one", anchor="two")], ["a red three", "a three"]) == 2
    assert kept([Concept(name="one", anchor="two", retain=["red one"])], ["a red one", "a three"]) == 3
    assert kept([Concept(name="red one"), Concept(name="two", retain=["one"])], ["a one"]) == 2
