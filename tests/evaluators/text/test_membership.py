"""Membership of texts and PrivLeak, on two letters by hand."""

import math
import zlib
from pathlib import Path

import pytest
import torch

from tests.toys.language import encoder, tiny, tiny_splits
from tests.toys.scripted import evaluation_of, value
from tests.toys.text_models import Bigram, letters
from unlearn.core.errors import RecipeError
from unlearn.core.records import Record
from unlearn.data.base import Split
from unlearn.data.text import TextItem
from unlearn.evaluators.statistics import auc, auc_change
from unlearn.evaluators.text.membership import TextMembership, gradient_norms

KNOWS, FLAT, SHUNS = 0.9, 0.5, 0.1
"""p(b) of a model that remembers forget items, which are all b, of one that tells nothing, of one that shuns them."""


def two_sides() -> dict[str, Split]:
    forget = [TextItem("a", "b" * n) for n in (1, 2, 3, 4)]
    holdout = [TextItem("a", "a" * n) for n in (1, 2, 3)]
    return letters(forget=forget, retain=[TextItem("a", "b")], holdout=holdout)


def records_of(*p: float, splits: dict[str, Split] | None = None, **settings: object) -> list[Record]:
    subjects = ("target", "unlearned", "retrained")
    models = {subject: Bigram(each) for subject, each in zip(subjects, p, strict=False)}
    return TextMembership(**settings)(evaluation_of(models, splits or two_sides())).records  # type: ignore[arg-type]


def test_a_model_that_remembers_is_found_out_and_one_that_shuns_too() -> None:
    """Every forget item is likelier than every holdout item: AUC 1; the other way round 0; all ties 1/2."""
    records = records_of(KNOWS, SHUNS, FLAT)
    for score in ("loss", "min_k", "zlib"):
        found = [value(records, "membership_auc", subject=s, score=score) for s in ("target", "unlearned", "retrained")]
        assert found == ([1, 0, 0.5] if score != "zlib" else [1, 0, found[2]])
    assert all(r.direction == "retrained" for r in records if r.metric == "membership_auc")
    assert value(records, "membership_auc", subject="retrained", score="min_k_plus_plus") == 0.5


def test_privleak_has_the_sign_of_muse() -> None:
    """A is the chance that a holdout item looks more like a member; A_r = 1/2 of the flat model.

    Remembered: A = 0, (0 - .5) / .5 = -100 %. Shunned: A = 1, +100 %. As the retrained model: 0.
    """
    records = records_of(KNOWS, SHUNS, FLAT)
    assert value(records, "privleak", subject="target") == -100
    assert value(records, "privleak", subject="unlearned") == 100
    assert value(records_of(KNOWS, FLAT, FLAT), "privleak", subject="unlearned") == 0
    same = value(records_of(KNOWS, 0.7, 0.7), "privleak", subject="unlearned")
    assert math.isnan(same)  # the retrained model itself tells all: A_r = 0, and the ratio is undefined
    assert {r.subject for r in records if r.metric == "privleak"} == {"target", "unlearned"}
    assert {(r.direction, r.unit) for r in records if r.metric == "privleak"} == {("zero", "%")}


def test_identical_models_have_privleak_0() -> None:
    models = {"target": tiny(1), "unlearned": tiny(2), "retrained": tiny(2)}
    records = TextMembership(gradient_items=0)(evaluation_of(models, tiny_splits())).records
    assert value(records, "privleak", subject="unlearned") == 0
    assert value(records, "privleak", subject="target") != 0


def test_privleak_needs_the_retrained_model_and_membership_a_holdout() -> None:
    assert "privleak" not in {r.metric for r in records_of(KNOWS, FLAT)}
    splits = {name: split for name, split in two_sides().items() if name != "holdout"}
    found = TextMembership()(evaluation_of({"target": Bigram(KNOWS)}, splits))
    assert found.records == [] and len(found.notes) == 1
    assert "the data have no holdout, so there is no membership_auc and no privleak" in found.notes[0]


def test_scores_by_hand() -> None:
    """One forget item bba and one holdout item ab under p(b) = .9: L = -(2 ln .9 + ln .1) / 3 and -(ln .9 + ln .1) / 2.

    Min-K of .4 reads one token of both: ln .1. Min-K++ likewise: z = -3 of the a.
    """
    splits = letters(forget=[TextItem("a", "bba")], retain=[TextItem("a", "b")], holdout=[TextItem("a", "ab")])
    evaluation = evaluation_of({"target": Bigram(KNOWS)}, splits)
    judge = TextMembership(gradient_items=1)
    pair = judge.compared(evaluation)
    assert pair is not None
    with torch.no_grad():
        scores = {
            name: [both.members.item(), both.others.item()]
            for name, both in judge.scores(evaluation, "target", pair).items()
        }
    high, low = math.log(0.9), math.log(0.1)
    losses = [(2 * high + low) / 3, (high + low) / 2]
    assert scores["loss"] == pytest.approx(losses)
    sizes = [len(zlib.compress(text)) for text in (b"bba", b"ab")]
    assert scores["zlib"] == pytest.approx([loss / size for loss, size in zip(losses, sizes, strict=True)])
    assert scores["min_k"] == pytest.approx([low, low])
    assert scores["min_k_plus_plus"] == pytest.approx([-3, -3])
    assert set(scores) == {"loss", "zlib", "min_k", "min_k_plus_plus", "gradient_norm"}


def test_the_gradient_norm_by_hand() -> None:
    """Of b after a: -d log p(b) / d logits = (p(a), p(b) - 1) = (.1, -.1) in the row of a: the norm is .1 sqrt 2.

    Of bb: each of the rows of a and of b has half of that: sqrt(2 x .005) = .1.
    """
    splits = letters(forget=[TextItem("a", "b"), TextItem("a", "bb")], retain=[TextItem("a", "b")])
    found = gradient_norms(evaluation_of({"target": Bigram(KNOWS)}, splits), "target", torch.arange(2))
    assert found.tolist() == pytest.approx([0.1 * math.sqrt(2), 0.1])


def test_the_gradient_is_of_all_weights_and_leaves_them_as_they_are() -> None:
    """Against a plain backward pass, with some weights frozen and in training mode or not: dropout stays off."""
    model, splits = tiny(1, dtype=torch.float64), tiny_splits()
    model.model.lm_head.weight.requires_grad_(False)
    evaluation = evaluation_of({"target": model}, splits)
    found = gradient_norms(evaluation, "target", splits["forget"].ids[:2])
    assert not model.model.lm_head.weight.requires_grad
    assert all(weight.grad is None for weight in model.parameters())
    model.model.lm_head.weight.requires_grad_(True)
    for item, norm in zip(splits["forget"].ids[:2], found.tolist(), strict=True):
        model.zero_grad()
        with torch.enable_grad():
            model.training_loss(splits["forget"].batch(item[None]), evaluation.randomness).sum().backward()
        squares = sum(weight.grad.square().sum().item() for weight in model.parameters() if weight.grad is not None)
        assert norm == pytest.approx(math.sqrt(squares))


def test_the_reference_score(tmp_path: Path) -> None:
    """L_ref - L: 0 for the reference itself, so that all tie; a model that knows the forget items stands out."""
    Bigram(FLAT).save_pretrained(tmp_path)
    splits = two_sides()
    records = records_of(KNOWS, FLAT, splits=splits, reference=str(tmp_path))
    assert value(records, "membership_auc", subject="target", score="reference") == 1
    assert value(records, "membership_auc", subject="unlearned", score="reference") == 0.5
    assert "reference" not in {r.about["score"] for r in records_of(KNOWS, splits=splits)}


def test_a_reference_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    other = tiny(0)
    other.encoder = encoder(280)
    other.save_pretrained(tmp_path)
    evaluation = evaluation_of({"target": tiny(0)}, tiny_splits())
    with pytest.raises(RecipeError, match=r"text_membership\.reference.*Type a model with"):
        TextMembership(reference=str(tmp_path), gradient_items=0)(evaluation)
    same = tiny(1)
    same.encoder.template, same.encoder.max_length = "Q: {question} A:", 48  # the target's own are what counts
    same.save_pretrained(tmp_path)
    records = TextMembership(reference=str(tmp_path), gradient_items=0)(evaluation).records
    assert "reference" in {r.about["score"] for r in records}


def test_a_reference_that_is_not_there_is_found_before_the_work(tmp_path: Path) -> None:
    TextMembership(reference=str(tmp_path)).check(two_sides())
    with pytest.raises(RecipeError, match=r"reference=.*Type the folder of a model"):
        TextMembership(reference=str(tmp_path / "none")).check(two_sides())


def test_texts_that_the_data_set_apart_are_taken() -> None:
    """MUSE names the texts of its attack; the splits, which would say the opposite, do not count then."""
    splits = two_sides()
    data = splits["forget"].dataset
    data.attributes = [frozenset({"privleak_holdout"})] * 4 + [frozenset()] + [frozenset({"privleak_forget"})] * 3
    found = value(records_of(KNOWS, splits=splits), "membership_auc", score="loss")
    assert found == 0
    data.attributes = [frozenset({"privleak_holdout"})] * 4 + [frozenset()] * 4
    assert value(records_of(KNOWS, splits=splits), "membership_auc", score="loss") == 1


def test_the_interval_of_the_change_of_an_auc() -> None:
    """Against the spread over bootstrap resamples of the items, which both models share."""
    generator = torch.Generator().manual_seed(0)
    members, others = (torch.randn(150, generator=generator).double() for _ in range(2))
    noise = torch.randn(2, 150, generator=generator).double()
    subject, reference = (members + 0.7, others), (members + 0.3 * noise[0], others + 0.3 * noise[1])
    change, ci95 = auc_change(subject, reference)
    a, a_0 = auc(*subject)[0], auc(*reference)[0]
    assert change == pytest.approx((a - a_0) / a_0)
    draws = []
    for _ in range(1500):
        i, j = torch.randint(150, (2, 150), generator=generator)
        a, a_0 = auc(subject[0][i], subject[1][j])[0], auc(reference[0][i], reference[1][j])[0]
        draws.append((a - a_0) / a_0)
    assert ci95 is not None
    assert (ci95[1] - ci95[0]) / 2 == pytest.approx(1.96 * torch.tensor(draws).std().item(), rel=0.1)
    assert auc_change(subject, subject) == (0, None)


def test_batches_and_order_change_nothing() -> None:
    models = {"target": tiny(1, dtype=torch.float64), "retrained": tiny(2, dtype=torch.float64)}
    found = []
    for size, splits in ((1, tiny_splits()), (16, tiny_splits())):
        if size == 16:
            splits = {name: Split(name, split.dataset, split.ids.flip(0)) for name, split in splits.items()}
        records = TextMembership(batch_size=size)(evaluation_of(models, splits)).records
        found.append({(r.metric, r.subject, r.about["score"]): r.value for r in records})
    assert found[0] == pytest.approx(found[1])
    assert len(found[0]) == 2 * 2 * 5 + 1  # AUC and members found, of two models by five scores, and PrivLeak


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        TextMembership(k=0)
    with pytest.raises(ValueError, match="gradient_items is -1"):
        TextMembership(gradient_items=-1)
