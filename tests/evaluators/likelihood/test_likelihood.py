"""Bits per dimension, ranks and membership, on models whose likelihood is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.toys.scripted import Pixels, evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.data.base import Dataset, Split
from unlearn.evaluators.base import EvaluationResult
from unlearn.evaluators.likelihood.bits_per_dim import BitsPerDim
from unlearn.evaluators.likelihood.likelihood_rank import LikelihoodRank
from unlearn.evaluators.likelihood.membership import Membership

Splits = dict[str, Split]


def mean_image(digits: Dataset) -> Tensor:
    return digits.batch(torch.arange(len(digits)))["image"].double().mean(0)


def figures(findings: EvaluationResult) -> dict[str, float]:
    return {repr((r.metric, r.subject, r.split, r.about)): r.value for r in findings.records}


def test_bits_per_dim_in_closed_form(threes: Splits) -> None:
    """Pixels N(m, s^2): bits/dim = mean of ((x - m) / s)^2 / (2 ln 2) + log2(s sqrt(2 pi)).

    With m = 5 and s = 2 over the forget images, computed here from the images themselves.
    """
    evaluation = evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(5, 2)}, threes)
    images = threes["forget"].batch(threes["forget"].ids)["image"].double()
    each = ((images - 5) / 2).square().flatten(1).mean(1) / (2 * math.log(2)) + math.log2(2 * math.sqrt(2 * math.pi))
    findings = BitsPerDim(items=None)(evaluation)
    record = next(r for r in findings.records if r.subject == "unlearned" and r.split == "forget")
    assert record.value == pytest.approx(each.mean().item(), rel=1e-6)
    half = 1.976346 * each.std().item() / math.sqrt(len(each))  # t of .975 at 146 degrees of freedom
    assert len(each) == 147
    assert record.ci95 == pytest.approx((record.value - half, record.value + half), rel=1e-5)
    assert record.n == len(threes["forget"])
    rows = [row["value"] for row in findings.items if (row["subject"], row["split"]) == ("unlearned", "forget")]
    assert rows == pytest.approx(each.tolist(), rel=1e-6)


def test_an_item_at_the_mean_has_quantile_a_half(threes: Splits, digits: Dataset) -> None:
    """The reference items rank among themselves: mean z = 0; the empirical quantile is 1/2 by symmetry of ranks."""
    evaluation = evaluation_of({"target": Pixels(mean_image(digits), 4)}, threes)
    records = LikelihoodRank(items=None, reference_items=None)(evaluation).records
    assert value(records, "likelihood_z", split="retain") == pytest.approx(0, abs=1e-9)
    assert value(records, "likelihood_quantile", split="retain", score="empirical") == pytest.approx(0.5)


def test_gaussian_quantile_by_hand(threes: Splits, digits: Dataset) -> None:
    """One forget item: q = 1 - Phi(r), r from the moments of the retain items under the same model."""
    one = replace(threes["forget"], ids=threes["forget"].ids[:1])
    evaluation = evaluation_of({"target": Pixels(mean_image(digits), 4)}, {**threes, "forget": one})
    evaluator = LikelihoodRank(draws=1, reference_items=None)
    reference = evaluator.bits(evaluation, "target", "retain", threes["retain"].ids)
    item = evaluator.bits(evaluation, "target", "forget", one.ids).item()
    r = (item - reference.mean().item()) / reference.std().item()
    records = evaluator(evaluation).records
    assert value(records, "likelihood_z", split="forget") == pytest.approx(r)
    expected = 0.5 * math.erfc(r / math.sqrt(2))
    assert value(records, "likelihood_quantile", split="forget", score="gaussian") == pytest.approx(expected)
    share = (reference > item).double().mean().item()
    assert value(records, "likelihood_quantile", split="forget", score="empirical") == pytest.approx(share)


def test_quantile_drop_of_equal_models_is_zero_and_of_a_shifted_one_is_not(threes: Splits, digits: Dataset) -> None:
    mean = mean_image(digits)
    three = threes["forget"].batch(threes["forget"].ids)["image"].double().mean(0)
    models = {"target": Pixels(mean, 4), "unlearned": Pixels(mean, 4), "retrained": Pixels(mean - (three - mean), 4)}
    records = LikelihoodRank()(evaluation_of(models, threes)).records
    for score in ("gaussian", "empirical"):
        for split in ("forget", "holdout", "test", "retain"):
            drop = value(records, "quantile_drop", subject="unlearned", split=split, score=score)
            assert drop == 0
        assert value(records, "quantile_drop", subject="retrained", split="forget", score=score) > 0.1
        assert value(records, "quantile_drop", subject="retrained", split="holdout", score=score) > 0.1
    assert not [r for r in records if r.metric == "quantile_drop" and r.subject == "target"]


def test_membership_of_models_that_know_nothing_all_and_the_opposite(threes: Splits, digits: Dataset) -> None:
    """A model centred on one image finds that image the likeliest: AUC 1 as member, 0 as holdout item.

    A model that gives every image the same likelihood tells nothing: all ties, 1/2.
    """
    one, other = threes["forget"].ids[:1], threes["holdout"].ids[:1]
    splits = {
        **threes,
        "forget": replace(threes["forget"], ids=one),
        "holdout": replace(threes["holdout"], ids=other),
    }
    models = {
        "target": Pixels(digits.batch(one)["image"][0], 2),
        "unlearned": Pixels(digits.batch(other)["image"][0], 2),
        "retrained": Pixels(5, 1e30),
    }
    records = Membership()(evaluation_of(models, splits)).records
    assert [value(records, "membership_auc", subject=s) for s in models] == [1, 0, 0.5]
    assert all(r.direction == "retrained" and r.about == {"score": "loss"} for r in records)


def test_no_holdout_no_membership(threes: Splits) -> None:
    splits = {name: split for name, split in threes.items() if name != "holdout"}
    found = Membership()(evaluation_of({"target": Pixels(5, 2)}, splits))
    assert found.records == [] and found.notes == [
        "membership: the data have no holdout, so there is no membership_auc."
    ]


@pytest.mark.parametrize("make", [BitsPerDim, LikelihoodRank, Membership])
def test_batch_size_changes_nothing(make: type, threes: Splits) -> None:
    few = make(batch_size=7)(evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(6, 2)}, threes))
    many = make(batch_size=512)(evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(6, 2)}, threes))
    assert figures(few) == pytest.approx(figures(many))
    other = make()(evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(2, 2)}, threes))
    assert figures(few) != pytest.approx(figures(other))


@pytest.mark.parametrize("make", [BitsPerDim, LikelihoodRank, Membership])
def test_the_order_of_the_items_changes_nothing(make: type, threes: Splits) -> None:
    turned = {name: replace(split, ids=split.ids.flip(0)) for name, split in threes.items()}
    evaluator = make(**{key: None for key in ("items", "reference_items") if hasattr(make(), key)})
    first, second = (
        evaluator(evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(6, 2)}, splits))
        for splits in (threes, turned)
    )
    assert figures(first) == pytest.approx(figures(second))

    def rows(findings: EvaluationResult) -> dict[tuple[str, str, int], float]:
        return {(row["subject"], row["split"], row["id"]): row["value"] for row in findings.items}

    assert rows(first) == pytest.approx(rows(second))


def test_limits_draw_the_same_items_for_every_subject(threes: Splits) -> None:
    findings = BitsPerDim(items=10)(evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(6, 2)}, threes))
    assert {r.n for r in findings.records} == {10}
    retain = [row for row in findings.items if row["split"] == "retain"]
    target, unlearned = ([row["id"] for row in retain if row["subject"] == s] for s in ("target", "unlearned"))
    assert target == unlearned
    assert target != threes["retain"].ids[:10].tolist()


def test_work_is_shared_within_an_evaluation_and_not_beyond(threes: Splits) -> None:
    models = {"target": Pixels(5, 2), "unlearned": Pixels(6, 2)}
    evaluation = evaluation_of(models, threes)
    before = BitsPerDim(draws=1)(evaluation)
    models["unlearned"].items.clear()
    LikelihoodRank(draws=1)(evaluation)
    Membership(draws=1)(evaluation)
    assert models["unlearned"].items == []
    models["unlearned"].mean += 1
    after = BitsPerDim(draws=1)(evaluation_of(models, threes))
    assert len(models["unlearned"].items) == sum(r.n for r in after.records if r.subject == "unlearned")
    assert value(after.records, "bits_per_dim", subject="target", split="test") == value(
        before.records, "bits_per_dim", subject="target", split="test"
    )
    assert value(after.records, "bits_per_dim", subject="unlearned", split="test") != value(
        before.records, "bits_per_dim", subject="unlearned", split="test"
    )


def test_a_broken_model_gives_unknown_figures_and_a_picture(threes: Splits) -> None:
    findings = BitsPerDim()(evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(math.nan, 2)}, threes))
    assert math.isnan(value(findings.records, "bits_per_dim", subject="unlearned", split="forget"))
    assert findings.pictures[0].png.startswith(b"\x89PNG")
    ranks = LikelihoodRank()(evaluation_of({"target": Pixels(5, 2), "unlearned": Pixels(math.nan, 2)}, threes))
    assert math.isnan(value(ranks.records, "quantile_drop", subject="unlearned", split="forget", score="empirical"))


def test_out_of_range_settings_are_refused(threes: Splits) -> None:
    for make in (BitsPerDim, LikelihoodRank, Membership):
        with pytest.raises(ValueError, match="draws is 0"):
            make(draws=0)
    with pytest.raises(ValueError, match="reference_items is 1"):
        LikelihoodRank(reference_items=1)
    splits = {name: split for name, split in threes.items() if name != "test"}
    with pytest.raises(RecipeError, match=r"reference=test.*Allowed: forget, retain, holdout"):
        LikelihoodRank(reference="test").check(splits)
