"""Exact memorisation, extraction strength and Min-K on two letters, derived by hand."""

import math

import pytest
import torch

from tests.toys.language import tiny, tiny_splits
from tests.toys.scripted import evaluation_of, value
from tests.toys.text_models import Bigram, letters
from unlearn.core.errors import RecipeError
from unlearn.data.text import TextItem
from unlearn.evaluators.text.memorization import Memorization
from unlearn.evaluators.text.metrics import (
    exact_memorization,
    extraction_strength,
    log_truth_ratio,
    lowest_mean,
    token_measures,
)
from unlearn.evaluators.text.scoring import answer_scores

TURNS = Bigram(0.9, 0.1)
"""After a, b is the likeliest; after b, a is."""


@pytest.mark.parametrize(
    ("answer", "exact", "strength"),
    [
        ("baba", 1, 1),  # all four are predicted
        ("bbab", 3 / 4, 1 / 2),  # the second is not; two follow
        ("aabb", 1 / 4, 0),  # only the third is: the end cannot be extracted
        ("aaaa", 0, 0),  # none: a loop that stops at k = |y| - 1 would say 1/4
        ("a", 0, 0),  # ... and 1 for one wrong token
        ("b", 1, 1),
        ("ab", 1 / 2, 1 / 2),
    ],
)
def test_exact_memorisation_and_extraction_strength_by_hand(answer: str, exact: float, strength: float) -> None:
    """The question is a, so the first letter follows an a. Strength is 1 - min{k: all from k on predicted} / |y|."""
    splits = letters(forget=[TextItem("a", answer)], retain=[TextItem("a", "b"), TextItem("a", "a")])
    records = Memorization()(evaluation_of({"target": TURNS}, splits)).records
    assert value(records, "exact_memorization", split="forget") == exact
    assert value(records, "extraction_strength", split="forget") == strength
    assert value(records, "exact_memorization", split="retain") == 1 / 2
    answers = TURNS.answers(splits["forget"].batch(splits["forget"].ids))
    right = answers.logits.argmax(dim=1) == answers.targets
    assert [exact_memorization(answers, right).item(), extraction_strength(answers, right).item()] == [exact, strength]


def test_items_and_intervals() -> None:
    """Shares 1, 3/4, 0 of three items: mean 7/12, and Student's t at 2 degrees of freedom is 4.302653."""
    items = [TextItem("a", "baba"), TextItem("a", "bbab"), TextItem("a", "aaaa")]
    splits = letters(forget=items, retain=[TextItem("a", "b")], holdout=[TextItem("a", "a")])
    findings = Memorization()(evaluation_of({"target": TURNS, "unlearned": Bigram(0.1, 0.9)}, splits))
    record = next(r for r in findings.records if r.subject == "target" and r.metric == "exact_memorization")
    deviation = math.sqrt(((1 - 7 / 12) ** 2 + (3 / 4 - 7 / 12) ** 2 + (7 / 12) ** 2) / 2)
    half = 4.302653 * deviation / math.sqrt(3)
    assert record.value == pytest.approx(7 / 12)
    assert record.ci95 == (max(0, 7 / 12 - half), min(1, 7 / 12 + half))
    assert (record.n, record.direction, record.unit) == (3, "retrained", "share")
    rows = {
        (row["metric"], row["id"]): row["value"]
        for row in findings.items
        if (row["subject"], row["split"]) == ("target", "forget")
    }
    assert [rows["exact_memorization", item] for item in range(3)] == [1, 3 / 4, 0]
    assert [rows["extraction_strength", item] for item in range(3)] == [1, 1 / 2, 0]
    assert value(findings.records, "exact_memorization", subject="unlearned", split="holdout") == 1
    assert value(findings.records, "exact_memorization", subject="target", split="holdout") == 0
    assert {r.split: r.direction for r in findings.records} == {
        "forget": "retrained",
        "retain": "higher",
        "holdout": "retrained",
    }


def test_items_without_answer_tokens_are_left_out() -> None:
    """Nothing predicts the only token of a passage of one letter."""
    splits = letters(forget=[TextItem("", "a"), TextItem("a", "b")], retain=[TextItem("", "b")])
    records = Memorization()(evaluation_of({"target": TURNS}, splits)).records
    assert [(r.split, r.n, r.value) for r in records] == [("forget", 1, 1), ("forget", 1, 1)]


def test_min_k_by_hand() -> None:
    """p(b) = .9: of log p (.9, .1, .9, .1, .9) the lowest int(.4 x 5) = 2 are ln .1; of three, int(1.2) = 1.

    One token of two (int(.8) = 0, where MUSE has no value) is still one token.
    """
    splits = letters(forget=[TextItem("a", answer) for answer in ("babab", "bbb", "ab", "bb", "bbbab")])
    scores = answer_scores(evaluation_of({"target": Bigram(0.9)}, splits), "target", "forget", torch.arange(5))
    low, high = math.log(0.1), math.log(0.9)
    assert scores.min_k.tolist() == pytest.approx([low, high, low, high, (low + high) / 2])
    assert scores.nll.tolist() == pytest.approx(
        [-(3 * high + 2 * low) / 5, -high, -(high + low) / 2, -high, -(4 * high + low) / 5]
    )
    assert scores.tokens.tolist() == [5, 3, 2, 2, 5]


def test_min_k_plus_plus_by_hand() -> None:
    """Of two letters with p and q = 1 - p: mu = p ln p + q ln q and sigma^2 = p q (ln p - ln q)^2.

    So z = (ln p - mu) / sigma = sqrt(q / p) for the likely letter, which is 1/3 at p = .9, and -sqrt(p / q) = -3 for
    the other. A flat prediction has z = 0, not 0 / 0.
    """
    splits = letters(forget=[TextItem("a", "bbbab"), TextItem("a", "bb")])
    answers = Bigram(0.9).answers(splits["forget"].batch(torch.arange(2)))
    _, _, z = token_measures(answers)
    assert z.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, -3, 1 / 3, 1 / 3, 1 / 3])
    assert lowest_mean(answers, z, 0.4).tolist() == pytest.approx([(1 / 3 - 3) / 2, 1 / 3])
    flat = Bigram(0.5).answers(splits["forget"].batch(torch.arange(2)))
    assert token_measures(flat)[2].tolist() == [0] * 7


def test_truth_ratio_by_hand() -> None:
    """P(right) = .9; P(wrong) = .1 and .3: r = sqrt(.03) / .9, or .2 / .9 with the arithmetic mean."""
    right, wrong = torch.tensor([0.9, 0.9]).double(), torch.tensor([[0.1, 0.3], [0.3, math.nan]]).double()
    assert log_truth_ratio(-right.log(), -wrong.log()).exp().tolist() == pytest.approx([math.sqrt(0.03) / 0.9, 1 / 3])
    arithmetic = log_truth_ratio(-right.log(), -wrong.log(), arithmetic=True)
    assert arithmetic.exp().tolist() == pytest.approx([0.2 / 0.9, 1 / 3])


def test_batches_and_padding_change_nothing() -> None:
    splits, model = tiny_splits(), tiny(1, dtype=torch.float64)
    ids = splits["forget"].ids
    one, many = (
        answer_scores(evaluation_of({"target": model}, splits), "target", "forget", ids, batch_size=size)
        for size in (1, 16)
    )
    other = answer_scores(evaluation_of({"target": tiny(2, dtype=torch.float64)}, splits), "target", "forget", ids)
    for name in one._fields:
        assert getattr(one, name).tolist() == pytest.approx(getattr(many, name).tolist(), rel=1e-9), name
    assert one.nll.tolist() != pytest.approx(other.nll.tolist())


def test_likelihoods_are_the_wrappers() -> None:
    """The mean NLL is the wrapper's training loss; a form is its own question and answer."""
    splits, model = tiny_splits(), tiny(1, dtype=torch.float64)
    evaluation = evaluation_of({"target": model}, splits)
    ids = splits["forget"].ids[:4]
    for form in ("", "perturbed_3"):
        batch = evaluation.batch("forget", ids, form)
        expected = model.training_loss(batch, evaluation.randomness)
        assert answer_scores(evaluation, "target", "forget", ids, form).nll.tolist() == pytest.approx(expected.tolist())


def test_other_data_are_refused(threes: dict) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.NAME=null"):
        Memorization()(evaluation_of({"target": TURNS}, threes))
    with pytest.raises(ValueError, match="items is 0"):
        Memorization(items=0)
