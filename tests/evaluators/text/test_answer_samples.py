"""The table of answers: the same questions for every model, and what each says, word for word."""

import pytest

from tests.toys.scripted import evaluation_of
from tests.toys.text_models import Bigram, letters
from unlearn.data.text import TextItem
from unlearn.evaluators.text.answer_samples import AnswerSamples
from unlearn.evaluators.text.tofu import TofuMetrics

QUESTIONS = [TextItem("a", "baba"), TextItem("b", "aa"), TextItem("", "abab"), TextItem("ab", "a")]


def test_what_every_model_says() -> None:
    """After a comes b and after b comes a in the first model, only a in the second; the passage asks nothing."""
    splits = letters(forget=QUESTIONS, retain=[TextItem("b", "ab")], holdout=[TextItem("a", "bb")])
    models = {"target": Bigram(0.9, 0.1), "unlearned": Bigram(0.1, 0.1)}
    findings = AnswerSamples(items=9, new_tokens=4)(evaluation_of(models, splits))
    assert not findings.records and not findings.pictures
    (sheet,) = findings.text_tables
    assert sheet.columns == ["", "question", "answer in the data", "target", "unlearned"]
    assert sheet.truth == "answer in the data"
    assert sorted(row[1:] for row in sheet.rows if row[0].startswith("forget")) == [
        ["a", "baba", "baba", "aaaa"],
        ["ab", "a", "abab", "aaaa"],
        ["b", "aa", "abab", "aaaa"],
    ]
    assert [row[0].partition(":")[0] for row in sheet.rows] == ["forget"] * 3 + ["retain", "holdout"]
    assert sheet.rows[3][1:] == ["b", "ab", "abab", "aaaa"]


def test_few_are_drawn_by_the_seed_and_share_the_generation() -> None:
    splits = letters(forget=[TextItem("ab" * n, "a") for n in range(1, 9)], retain=[TextItem("b", "a")])
    model = Bigram(0.9, 0.1)
    evaluation = evaluation_of({"target": model}, splits)
    TofuMetrics(new_tokens=9, items=None)(evaluation)
    before = model.prompts
    (sheet,) = AnswerSamples(items=2, new_tokens=5)(evaluation).text_tables
    assert model.prompts == before  # everything was said before, for the other metrics
    assert len([row for row in sheet.rows if row[0].startswith("forget")]) == 2
    (again,) = AnswerSamples(items=2, new_tokens=5)(evaluation_of({"target": Bigram(0.9, 0.1)}, splits)).text_tables
    assert again.rows == sheet.rows


def test_passages_alone_give_no_table() -> None:
    splits = letters(forget=[TextItem("", "abab")], retain=[TextItem("", "ba")])
    assert AnswerSamples()(evaluation_of({"target": Bigram(0.9)}, splits)).text_tables == []


@pytest.mark.parametrize("wrong", [{"items": 0}, {"new_tokens": 0}])
def test_numbers_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="it must be >= 1"):
        AnswerSamples(**wrong)
