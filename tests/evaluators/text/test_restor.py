"""Restoration: closed forms of its figures, and real models that were corrupted and put right."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.language import encoder, tiny, tiny_dataset
from tests.toys.scripted import value
from tests.toys.trained_language import ALL, WRONG, remembering
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.records import Record
from unlearn.data.base import Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.evaluators.base import Evaluation, EvaluationResult
from unlearn.evaluators.restoration import bootstrap, corruption_forgetting, restoration, restoration_ratio
from unlearn.evaluators.text.restor import Restor, plain, says


def bits(text: str) -> Tensor:
    return torch.tensor([letter == "1" for letter in text])


def nothing(seed: int = 0) -> Evaluation:
    """Return an evaluation without models, for figures of answers that are given."""
    return Evaluation({}, {}, Randomness(0), torch.device("cpu"), seed=seed)


def figures(clean: str, corrupted: str, unlearned: str) -> list[Record]:
    """Restoration of the right answers; each model is taken to say the corrupted answer where it is wrong."""
    right = {"clean": bits(clean), "corrupted": bits(corrupted), "unlearned": bits(unlearned)}
    wrong = {subject: ~answers for subject, answers in right.items()}
    return restoration(nothing(seed=3), right, wrong, "match")


def test_ratios_by_hand() -> None:
    """Accuracies 3/4, 1/4 and 2/4: half of the gap is closed. Corrupted answers fall from 3 to 2 of 4: 1 - 2/3."""
    records = figures("1110", "0010", "1010")
    assert value(records, "restoration_ratio", subject="unlearned") == 0.5
    assert value(records, "corruption_forgetting", subject="unlearned") == pytest.approx(1 / 3)
    assert value(records, "fact_accuracy", subject="unlearned") == 0.5
    assert {(r.split, r.about["score"], r.seed, r.n, r.direction) for r in records} == {
        ("probe", "match", 3, 4, "higher")
    }


def test_doing_nothing_is_0_and_the_clean_model_1() -> None:
    """By construction, with intervals of no width, as the same items stand above and below the line."""
    records = figures("1110111", "0010011", "0010011")
    for subject, ratio in (("corrupted", 0), ("unlearned", 0), ("clean", 1)):
        (record,) = [r for r in records if r.metric == "restoration_ratio" and r.subject == subject]
        assert record.value == ratio and record.ci95 == (ratio, ratio)
    assert value(records, "corruption_forgetting", subject="corrupted") == 0


def test_worse_than_doing_nothing_is_below_0_and_better_than_clean_above_1() -> None:
    assert value(figures("1110", "0110", "0000"), "restoration_ratio", subject="unlearned") == -2
    assert value(figures("1110", "0110", "1111"), "restoration_ratio", subject="unlearned") == 2


def test_forgetting_is_not_restoring() -> None:
    """A model that says nothing has forgotten the corruption wholly, and restored nothing."""
    right = {"clean": bits("1111"), "corrupted": bits("0000"), "unlearned": bits("0000")}
    wrong = {"clean": bits("0000"), "corrupted": bits("1111"), "unlearned": bits("0000")}
    records = restoration(nothing(), right, wrong, "match")
    assert value(records, "corruption_forgetting", subject="unlearned") == 1
    assert value(records, "restoration_ratio", subject="unlearned") == 0


def test_without_a_gap_the_ratio_is_undefined() -> None:
    records = figures("1100", "1100", "1110")
    (record,) = [r for r in records if r.metric == "restoration_ratio" and r.subject == "unlearned"]
    assert math.isnan(record.value) and record.ci95 is None
    right = {"clean": bits("11"), "corrupted": bits("10")}
    none = restoration(nothing(), right, {"clean": bits("00"), "corrupted": bits("00")}, "match")
    assert math.isnan(value(none, "corruption_forgetting", subject="clean"))


def test_the_interval_is_over_items_in_pairs_and_drawn_by_the_seed() -> None:
    """Where a model is right on exactly the clean model's items, every draw gives 1; on others, draws differ."""
    stream = Randomness(0)
    clean, corrupted = bits("1" * 30 + "0" * 10), bits("0" * 40)
    assert bootstrap(restoration_ratio, stream, clean, corrupted, clean) == (1, (1, 1))
    turned = clean.flip(0)  # right as often, but on other items
    share, interval = bootstrap(restoration_ratio, stream, clean, corrupted, turned)
    assert share == 1 and interval is not None and interval[0] < 0.9 < 1.1 < interval[1]
    assert bootstrap(restoration_ratio, stream, clean, corrupted, turned) == (share, interval)
    assert bootstrap(restoration_ratio, Randomness(1), clean, corrupted, turned)[1] != interval


def test_the_interval_covers_a_shares_normal_one() -> None:
    """1 - p / 1 has the interval of a share: 1.96 sqrt(p (1 - p) / n) to either side."""
    said = bits("1" * 60 + "0" * 140)
    share, interval = bootstrap(corruption_forgetting, Randomness(0), bits("1" * 200), said)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 200)
    assert share == pytest.approx(0.7) and interval == pytest.approx((0.7 - half, 0.7 + half), abs=0.012)
    assert bootstrap(corruption_forgetting, Randomness(0), bits("1"), bits("0")) == (1, None)


def test_an_interval_is_left_out_where_many_draws_have_no_gap() -> None:
    """One item of four makes the gap: (3/4)^4, a third of the draws, miss it."""
    assert bootstrap(restoration_ratio, Randomness(0), bits("1000"), bits("0000"), bits("1000")) == (1, None)


@pytest.mark.parametrize(
    ("said", "answer", "holds"),
    [
        ("The capital is Lima.", "lima", True),
        ("LIMA", "Lima", True),
        ("Limassol", "Lima", False),
        ("San  Jose, I think", "The San Jose", True),
        ("Jose San", "San Jose", False),
        ("28,500 square km", "28,500 square km", True),
        ("128,500 square km", "28,500 square km", False),
        ("anything", "?", False),
        ("", "Lima", False),
    ],
)
def test_an_answer_is_found_by_its_words(said: str, answer: str, holds: bool) -> None:
    assert says(said, answer) is holds


def test_plain_text() -> None:
    assert plain(" The U.S.–based  'Ünion' of a_kind ") == "u s based ünion of kind"


def evaluation(data: TextDataset | None = None, **models: Any) -> Evaluation:
    splits = {"probe": Split("probe", data or tiny_dataset(), torch.tensor(WRONG))}
    return Evaluation(models, splits, Randomness(0, "evaluate"), torch.device("cpu"))


def restor(unlearned: Any) -> EvaluationResult:
    """A clean model that knows all facts, and one that was taught four of them wrongly."""
    corrupted = remembering(tuple(i for i in ALL if i not in WRONG), wrong=WRONG)
    return Restor(new_tokens=12)(evaluation(clean=remembering(), target=corrupted, unlearned=unlearned))


@pytest.mark.parametrize("score", ["match", "options"])
def test_real_models(score: str) -> None:
    """Nothing done is 0, the clean model put back is 1; a model with random weights knows neither answer."""
    corrupted = remembering(tuple(i for i in ALL if i not in WRONG), wrong=WRONG)
    for model, ratio, forgotten in ((corrupted, 0, 0), (remembering(), 1, 1)):
        records = restor(model).records
        assert value(records, "restoration_ratio", subject="unlearned", score=score) == ratio
        assert value(records, "corruption_forgetting", subject="unlearned", score=score) == forgotten
        assert value(records, "fact_accuracy", subject="clean", score=score) == 1
        assert value(records, "fact_accuracy", subject="corrupted", score=score) == 0
        assert "target" not in {record.subject for record in records}
    wild = restor(tiny(9)).records
    assert value(wild, "restoration_ratio", subject="unlearned", score="match") == 0
    assert value(wild, "corruption_forgetting", subject="unlearned", score="match") == 1


def test_margins_and_flips() -> None:
    """The margin is log p(right) - log p(corrupted), a token; it turns back in all four items or in none."""
    data = tiny_dataset()
    back = restor(remembering())
    for subject, sign, flipped in (("corrupted", -1, 0), ("unlearned", 1, 1)):
        assert sign * value(back.records, "answer_margin", subject=subject, score="margin") > 1
        assert value(back.records, "answer_margin", subject=subject, score="flipped") == flipped
    nlls = []
    for form in ("", "corrupted"):
        batch = data.form(form, torch.tensor(WRONG))
        nlls.append(remembering().training_loss(batch, Randomness(0)).double())
    expected = (nlls[1] - nlls[0]).tolist()
    rows = [row["value"] for row in back.items if row["subject"] == "clean"]
    assert rows == pytest.approx(expected, rel=1e-5)
    assert value(back.records, "answer_margin", subject="clean", score="margin") == pytest.approx(
        sum(expected) / 4, rel=1e-5
    )


def test_options_are_likeliest_by_the_mean_of_a_token_and_no_option_stands_twice() -> None:
    """An extra wrong option equal to the corrupted answer must not tie with it."""
    data = tiny_dataset()
    doubled = [
        replace(item, forms={**item.forms, "perturbed_9": item.forms["corrupted"]})
        if "corrupted" in item.forms
        else item
        for item in data.items
    ]
    corrupted = remembering(tuple(i for i in ALL if i not in WRONG), wrong=WRONG)
    models = {"clean": remembering(), "target": corrupted, "unlearned": corrupted}
    again = Restor(new_tokens=4)(evaluation(TextDataset(doubled, data.is_test, encoder=data.encoder), **models))
    plain_ = Restor(new_tokens=4)(evaluation(**models))
    assert again.records == plain_.records
    assert value(again.records, "corruption_forgetting", subject="corrupted", score="options") == 0


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.corrupt=.*evaluate\.restor=null"):
        Restor().check({})
    bare = TextDataset([TextItem("Who?", "Me")], torch.tensor([False]), encoder=encoder())
    with pytest.raises(RecipeError, match=r"evaluate\.restor=null"):
        Restor().check({"probe": Split("probe", bare, torch.tensor([0]))})
    with pytest.raises(ValueError, match="new_tokens is 0"):
        Restor(new_tokens=0)


def test_models_are_left_as_they_are() -> None:
    model = remembering()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    assert restor(model).records == restor(model).records
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
