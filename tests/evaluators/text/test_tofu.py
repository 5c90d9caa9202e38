"""The TOFU suite: on two letters by hand."""

import math
from collections.abc import Sequence

import pytest
import torch

from tests.toys.scripted import evaluation_of, value
from tests.toys.text_models import Bigram, letters
from unlearn.data.text import TextItem
from unlearn.evaluators.text.tofu import TofuMetrics, kolmogorov_smirnov

WRONG = {"perturbed_0": ("a", "a"), "perturbed_1": ("a", "ab")}
HIGH = Bigram(0.9)
"""p(b) = .9 whatever went before: P(b) = .9, P(a) = .1, P(ab) = sqrt(.9 x .1) = .3."""


def asked(answer: str = "b", attributes: Sequence[str] = (), **forms: tuple[str, str]) -> TextItem:
    return TextItem("a", answer, "", frozenset(attributes), forms)


def test_probability_and_truth_ratio_by_hand() -> None:
    """Geometric r = sqrt(.1 x .3) / .9 = .1925, arithmetic .2 / .9; forget counts min(r, 1 / r), retain 1 - r.

    Among the options, the answer of a real author has .9 / (.9 + .1 + .3). With the paraphrase a, P(right) = .1 and
    r = sqrt(.03) / .1 = 1.73, whose inverse counts on forget, and 0 on retain.
    """
    again = {"paraphrased_answer": ("a", "a")}
    splits = letters(
        forget=[asked(**WRONG), asked(**WRONG, **again)],
        retain=[asked(**WRONG), asked(**WRONG, **again)],
        test=[asked("b", ["real_authors"], **WRONG)],
    )
    r = math.sqrt(0.03) / 0.9
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    assert value(records, "truth_ratio", split="forget") == pytest.approx((r + 0.1 / math.sqrt(0.03)) / 2)
    assert value(records, "truth_ratio", split="retain") == pytest.approx((1 - r) / 2)
    assert value(records, "truth_ratio", split="test") == pytest.approx(1 - r)
    assert value(records, "probability", split="forget") == pytest.approx(0.9)
    assert value(records, "probability", split="test", set="real_authors") == pytest.approx(0.9 / 1.3)
    records = TofuMetrics(new_tokens=1, arithmetic=True)(evaluation_of({"target": HIGH}, splits)).records
    assert value(records, "truth_ratio", split="test") == pytest.approx(1 - 0.2 / 0.9)


def test_model_utility_by_hand() -> None:
    """Four answers of b, one greedy b said each: ROUGE 1 on retain. 3 / (1 / .9 + 1 / 1 + 1 / (1 - r)); of authors
    .9 / 1.3 and 1 and 1 - r. Forget and holdout do not count."""
    r = math.sqrt(0.03) / 0.9
    retain = [asked(**WRONG) for _ in range(3)]
    splits = letters(forget=[asked("a", **WRONG)], retain=retain, holdout=[asked("a", **WRONG)])
    (record,) = [
        found
        for found in TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
        if found.metric == "model_utility"
    ]
    assert record.value == pytest.approx(3 / (1 / 0.9 + 1 + 1 / (1 - r)))
    assert record.about == {"parts": "3 of 9"}
    assert (record.n, record.direction, record.split) == (3, "higher", "")
    splits = letters(forget=[asked("a", **WRONG)], retain=retain, test=[asked("b", ["world_facts"], **WRONG)])
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    parts = [0.9, 1, 1 - r, 0.9 / 1.3, 1, 1 - r]
    assert value(records, "model_utility", parts="6 of 9") == pytest.approx(6 / sum(1 / part for part in parts))


def test_a_part_that_is_0_makes_utility_0() -> None:
    splits = letters(forget=[asked()], retain=[asked("a"), asked("a")])
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    assert value(records, "model_utility", parts="2 of 9") == 0
    assert value(records, "rouge_l_recall", split="retain") == 0


def test_the_interval_of_model_utility_covers_resamples() -> None:
    """It is linearised: near the spread of the figure over bootstrap resamples of the items, computed here."""
    retain = [asked("b" * (1 + n % 3) + "a" * (n % 2), **WRONG) for n in range(60)]
    splits = letters(forget=[asked()], retain=retain)
    findings = TofuMetrics(new_tokens=2, items=None)(evaluation_of({"target": Bigram(0.8)}, splits))
    (record,) = [r for r in findings.records if r.metric == "model_utility"]
    columns = torch.tensor(
        [
            [row["value"] for row in findings.items if row["metric"] == metric and row["split"] == "retain"]
            for metric in ("probability", "rouge_l_recall", "truth_ratio")
        ]
    )
    drawn = torch.randint(60, (4000, 60), generator=torch.Generator().manual_seed(0))
    figures = 3 / (1 / columns[:, drawn].mean(dim=2)).sum(dim=0)
    assert record.ci95 is not None
    assert (record.ci95[1] - record.ci95[0]) / 2 == pytest.approx(1.96 * figures.std().item(), rel=0.1)


def test_forget_quality_of_equal_and_of_distant_models() -> None:
    """Equal: p = 1, D = 0. Apart: D = 1, and p = 2 / C(8, 4) = 2 / 70, two of all orders of 4 + 4 values."""
    forget = [asked("b" * n, **WRONG) for n in (1, 2, 3, 4)]
    splits = letters(forget=forget, retain=[asked(**WRONG)])
    models = {"target": Bigram(0.2), "unlearned": HIGH, "retrained": Bigram(0.9)}
    records = TofuMetrics(new_tokens=1)(evaluation_of(models, splits)).records
    found = {(r.subject, r.about.get("score")): r for r in records if r.metric == "forget_quality"}
    assert found.keys() == {(s, score) for s in ("target", "unlearned") for score in (None, "statistic")}
    assert [found["unlearned", None].value, found["unlearned", "statistic"].value] == [1, 0]
    assert found["target", None].value == pytest.approx(2 / 70)
    assert found["target", "statistic"].value == 1
    assert [found["target", None].direction, found["target", "statistic"].direction] == ["higher", "lower"]
    assert all(math.isnan(x) for x in kolmogorov_smirnov(torch.tensor([math.nan]), torch.tensor([1.0])))


def test_missing_forms_switch_off_what_needs_them() -> None:
    """No wrong answers: no truth ratio, no forget quality, no probability among options; and no retrained model."""
    splits = letters(forget=[asked()], retain=[asked()], test=[asked("b", ["real_authors"])])
    models = {"target": HIGH, "retrained": HIGH}
    found = TofuMetrics(new_tokens=1)(evaluation_of(models, splits))
    bare = "forget and retain and real_authors have no perturbed answers"
    assert found.notes == [f"tofu: the questions of {bare}, so there is no truth_ratio and no forget_quality."]
    assert {(r.metric, r.split) for r in found.records} == {
        ("probability", "forget"),
        ("rouge_l_recall", "forget"),
        ("probability", "retain"),
        ("rouge_l_recall", "retain"),
        ("rouge_l_recall", "test"),
        ("model_utility", ""),
    }
    whole = letters(forget=[asked(**WRONG), asked("a")], retain=[asked(**WRONG)])
    found = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, whole))
    records = found.records
    assert found.notes == [] and "forget_quality" not in {r.metric for r in records}
    assert {r.n for r in records if r.split == "forget"} == {1}  # where some have wrong answers, it is those
    passages = letters(forget=[TextItem("", "abab")], retain=[TextItem("", "ab")])
    found = TofuMetrics()(evaluation_of({"target": HIGH}, passages))
    assert found.records == [] and found.notes[0].startswith("tofu: forget and retain ask nothing")


def test_answers_that_are_cut_away_are_left_out() -> None:
    """A question as long as all that a model reads leaves no answer; a broken model has no figures, not 0."""
    splits = letters(forget=[asked(**WRONG), asked(**WRONG)], retain=[asked(**WRONG), asked("a", **WRONG)])
    data = splits["forget"].dataset
    data.tokens(1)  # type: ignore[attr-defined]
    data._encoded[1, "perturbed_1"] = ([0], [])  # type: ignore[attr-defined]
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    assert [r.n for r in records] == [1, 1, 1, 2, 2, 2, 2]
    assert all(math.isfinite(r.value) for r in records)
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": Bigram(math.nan)}, splits)).records
    assert math.isnan(value(records, "probability", split="retain"))
    assert math.isnan(value(records, "model_utility", parts="3 of 9"))


def test_one_generation_pass_for_all() -> None:
    splits = letters(forget=[asked(**WRONG), asked("a")], retain=[asked("b")])
    evaluation = evaluation_of({"target": Bigram(0.9)}, splits)
    model = evaluation.models["target"]
    TofuMetrics(new_tokens=3)(evaluation)
    assert model.prompts == 2
    TofuMetrics(new_tokens=2)(evaluation)
    assert model.prompts == 2
    TofuMetrics(new_tokens=4)(evaluation)
    assert model.prompts == 4
