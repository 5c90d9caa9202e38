"""What a classifier sees in samples that were told what to show, on generators whose every sample is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.toys.coloured_digits import another_colour, another_digit, coloured, readable, splits_of
from tests.toys.scripted import Copier, Obedient, Pixels, evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Selection, Split
from unlearn.data.coloured_digits import ColouredDigits
from unlearn.data.conditioned import Classes, Conditioned, Prompts
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits
from unlearn.evaluators.image.concept_accuracy import ConceptAccuracy
from unlearn.evaluators.image.concept_classifier import concept_classifier
from unlearn.evaluators.image.feature_distance import FeatureDistance
from unlearn.evaluators.image.sample_grid import SampleGrid
from unlearn.evaluators.image.sample_share import SampleShare
from unlearn.evaluators.sampling import sampled_items, samples
from unlearn.evaluators.statistics import ratio_of_shares, wilson
from unlearn.models.feature_extractors.classifiers import features_for

Splits = dict[str, Split]
Rule = Callable[[Tensor, Tensor], Tensor]


def every(n: int, rule: Callable[[Tensor], Tensor], first: int = 0) -> Rule:
    """Return the rule that changes samples first ... n - 1 of each n and leaves the others as they are told."""
    return lambda ids, items: torch.where(ids % n >= first, rule(items), items)


def both(*rules: Rule) -> Rule:
    def apply(ids: Tensor, items: Tensor) -> Tensor:
        for rule in rules:
            items = rule(ids, items)
        return items

    return apply


def on_forget(rule: Rule, splits: Splits) -> Rule:
    """Return the rule for forget items alone."""
    return lambda ids, items: torch.where(torch.isin(items, splits["forget"].ids), rule(ids, items), items)


def measured(splits: Splits, samples: int = 100, **rules: Rule) -> list:
    models = {subject: Obedient(coloured(), rule) for subject, rule in rules.items()}
    return ConceptAccuracy(samples=samples)(evaluation_of(models, splits)).records


def as_told(ids: Tensor, items: Tensor) -> Tensor:
    return items


def test_a_forgotten_digit_by_hand() -> None:
    """Threes are forgotten. Of ten forget samples the target shows eight threes, the unlearned model two.

    It gets four colours of five right. Of the retain samples one digit of four is wrong. UA is 1 - .2; what is left of
    the target's accuracy is .2 / .8.
    """
    splits = splits_of("three")
    forgets = on_forget(both(every(10, another_digit, 2), every(5, another_colour, 4)), splits)
    keeps = every(4, another_digit, 3)
    forget_ids = splits["forget"].ids
    records = measured(
        splits,
        target=on_forget(every(10, another_digit, 8), splits),
        unlearned=lambda ids, items: torch.where(torch.isin(items, forget_ids), forgets(ids, items), keeps(ids, items)),
        retrained=on_forget(every(1, another_digit), splits),
    )

    def found(metric: str, split: str, subject: str = "unlearned", **about: str) -> float:
        return next(
            r.value for r in records if (r.metric, r.split, r.subject, r.about) == (metric, split, subject, about)
        )

    assert found("accuracy", "forget") == pytest.approx(0.2)
    assert found("accuracy", "forget", "target") == pytest.approx(0.8)
    assert found("accuracy", "forget", "retrained") == 0
    assert found("accuracy", "forget", score="of_target") == pytest.approx(0.25)
    assert found("accuracy", "retain") == pytest.approx(0.75)
    assert found("accuracy", "cross_domain") == pytest.approx(0.8)
    assert found("accuracy", "cross_domain", score="on_retain") == 1
    assert found("unlearning_accuracy", "forget") == pytest.approx(0.8)
    assert found("unlearning_accuracy", "forget", score="of_target") == pytest.approx(0.75)
    assert found("accuracy", "retain", score="of_target") == pytest.approx(0.75)
    assert value(records, "classifier_accuracy", score="digit") > 0.98
    assert all(r.detector["name"] == "colourdigitnet8" for r in records)
    assert all(r.detector["sha256"] == features_for(coloured().info).sha256 for r in records)


def test_intervals_and_numbers_are_those_of_the_splits_samples() -> None:
    splits = splits_of("three")
    records = measured(splits, target=as_told, unlearned=on_forget(every(10, another_digit, 2), splits))
    forget = next(r for r in records if r.metric == "accuracy" and r.subject == "unlearned" and r.split == "forget")
    independent = wilson(0.2, 100)
    assert forget.n == 100 and forget.value == 0.2
    assert forget.ci95[0] < independent[0] and independent[1] < forget.ci95[1]  # samples of one prompt are no strangers
    unlearning = next(r for r in records if r.metric == "unlearning_accuracy" and r.subject == "unlearned")
    assert unlearning.n == 100
    assert unlearning.ci95 == pytest.approx((1 - forget.ci95[1], 1 - forget.ci95[0]))


def test_an_error_elsewhere_does_not_count() -> None:
    """All retain digits are wrong, and UA stays what it was: 1/2. Over all samples (the control) it would be 3/4."""
    splits = splits_of("three")
    half = on_forget(every(2, another_digit, 1), splits)
    wrong = lambda ids, items: torch.where(  # noqa: E731
        torch.isin(items, splits["forget"].ids), half(ids, items), another_digit(items)
    )
    records = measured(splits, target=as_told, unlearned=half, retrained=wrong)
    for subject in ("unlearned", "retrained"):
        found = [r for r in records if r.metric == "unlearning_accuracy" and r.subject == subject]
        assert found[0].value == pytest.approx(0.5)
    wrong_retain = [r for r in records if r.split == "retain" and r.subject == "retrained" and not r.about]
    assert wrong_retain[0].value == 0
    shares = [wrong_retain[0].value, 0.5]
    assert 1 - sum(shares) / 2 == 0.75


def test_a_forgotten_colour_is_the_reverse() -> None:
    """Red is forgotten: another digit is a cross-domain error, another colour none of the digit's."""
    splits = splits_of("red")
    rules = {"target": as_told, "unlearned": every(2, another_colour, 1), "retrained": every(2, another_digit, 1)}
    records = [r for r in measured(splits, **rules) if r.metric == "accuracy" and not r.about]
    found = {(r.subject, r.split): r.value for r in records}
    assert found == {
        **{("target", split): 1 for split in ("forget", "retain", "cross_domain")},
        ("unlearned", "forget"): 0.5,
        ("unlearned", "retain"): 0.5,
        ("unlearned", "cross_domain"): 1,
        ("retrained", "forget"): 1,
        ("retrained", "retain"): 1,
        ("retrained", "cross_domain"): 0.5,
    }


def test_several_digits_have_categories() -> None:
    """Threes and sevens are forgotten; the model still draws every three, and no seven."""
    splits = splits_of("three", "seven")
    sevens = torch.nonzero(coloured().having(["seven"])).flatten()
    rule: Rule = lambda ids, items: torch.where(torch.isin(items, sevens), another_digit(items), items)  # noqa: E731
    records = measured(splits, target=as_told, unlearned=rule)
    by_label = {
        r.about["category"]: (r.value, r.n)
        for r in records
        if r.metric == "accuracy" and r.subject == "unlearned" and r.split == "forget" and "category" in r.about
    }
    assert {label: share for label, (share, _) in by_label.items()} == {"three": 1, "seven": 0}
    assert sum(n for _, n in by_label.values()) == 100
    items = sampled_items(evaluation_of({}, splits), "forget", 100)
    assert by_label["seven"][1] == int(torch.isin(items, sevens).sum())


def test_class_conditional_digits_have_one_question() -> None:
    data = Conditioned(Digits().load(), Classes(tuple(map(str, range(10)))))
    splits = make_splits(data, Digits(forget=Selection(label=["3"])), Randomness(0))
    models = {"target": Obedient(data), "unlearned": Obedient(data, lambda ids, items: items * 0 + 1)}  # item 1 is a 1
    records = ConceptAccuracy(samples=50)(evaluation_of(models, splits)).records
    assert {r.split for r in records} == {"forget", "retain", "test"}
    assert value(records, "classifier_accuracy") == 1
    unlearned = {(r.metric, r.split): r.value for r in records if r.subject == "unlearned" and not r.about}
    items = sampled_items(evaluation_of(models, splits), "retain", 50)
    ones = sum(data.labels[item] == "1" for item in items.tolist()) / 50
    assert unlearned == {
        ("accuracy", "forget"): 0,
        ("unlearning_accuracy", "forget"): 1,
        ("accuracy", "retain"): pytest.approx(ones),
    }


def test_every_subject_is_told_the_same() -> None:
    """Conditions are those of the split's items, in an order of the seed, over and over where they do not reach."""
    splits = splits_of("three")
    models = {"target": Obedient(coloured()), "unlearned": Obedient(coloured())}
    evaluation = evaluation_of(models, splits)
    ids = splits["forget"].ids
    n = len(ids) + 10
    first = samples(evaluation, "target", "forget", 20)
    more = samples(evaluation, "target", "forget", n, batch_size=50)
    samples(evaluation, "unlearned", "forget", n)
    told = models["target"].told
    assert told == models["unlearned"].told == sampled_items(evaluation, "forget", n).tolist()
    assert sorted(told[: len(ids)]) == ids.tolist() and told[len(ids) :] == told[:10]
    assert told[: len(ids)] != ids.tolist()  # spread, not in the order of the data
    assert torch.equal(first, more[:20])
    assert torch.equal(more, coloured().batch(torch.tensor(told))["image"])
    other = sampled_items(evaluation_of(models, splits, seed=1), "forget", n)
    assert other.tolist() != told
    assert set(samples(evaluation, "target", "retain", 5).flatten().tolist()) and models["target"].told[n:] == (
        sampled_items(evaluation, "retain", 5).tolist()
    )


def test_shares_say_what_became_of_the_forgotten() -> None:
    """Forget samples all show fours in place of threes; retain samples are right."""
    splits = splits_of("three")
    models = {
        "target": Obedient(coloured()),
        "unlearned": Obedient(coloured(), on_forget(every(1, another_digit), splits)),
    }
    findings = SampleShare(samples=60)(evaluation_of(models, splits))
    found = {(r.subject, r.split, r.about["category"]): r for r in findings.records if r.metric == "sample_share"}
    assert found["target", "forget", "three"].value == found["unlearned", "forget", "four"].value == 1
    assert found["unlearned", "forget", "three"].value == found["unlearned", "retain", "three"].value == 0
    assert found["unlearned", "forget", "three"].direction == "lower"
    assert found["unlearned", "forget", "four"].direction == "none"
    assert found["unlearned", "retain", "red"].direction == "retrained"
    assert [picture.name for picture in findings.pictures] == ["shares_forget", "shares_retain"]


def test_distances_are_of_retain_samples() -> None:
    """A model that draws all retain items rightly is at the floor, whatever it draws of forget items."""
    splits = splits_of("three")
    ruined: Rule = lambda ids, items: items * 0  # noqa: E731
    models = {
        "target": Obedient(coloured()),
        "unlearned": Obedient(coloured(), on_forget(ruined, splits)),
        "retrained": Obedient(coloured(), ruined),
    }
    records = FeatureDistance(samples=400, items=400, bootstraps=2)(evaluation_of(models, splits)).records
    found = {r.subject: r.value for r in records if r.metric == "frechet_colourdigitnet8" and not r.about}
    assert found["target"] == found["unlearned"] < 0.05 * found["retrained"]
    assert all(r.detector for r in records)


def test_grids_show_both_conditions() -> None:
    splits = splits_of("three")
    models = {"target": Obedient(coloured()), "unlearned": Obedient(coloured())}
    found = SampleGrid(side=2)(evaluation_of(models, splits)).pictures
    assert [picture.name for picture in found] == ["forget", "samples_forget", "samples_retain"]
    assert "the conditions of forget items" in found[1].title


def test_prompts_without_images_have_grids() -> None:
    class Words(Dataset):
        labels, attributes = ["dog", "cat"] * 10, [frozenset()] * 20
        is_test, fingerprint, info = torch.zeros(20, dtype=torch.bool), "", {}

        def batch(self, ids: Tensor) -> dict[str, Tensor]:
            return {"id": ids}

    words = Conditioned(Words(), Prompts(lambda texts: torch.zeros(len(texts), 1, 2, dtype=torch.int64)))
    splits = {
        "forget": Split("forget", words, torch.arange(0, 20, 2)),
        "retain": Split("retain", words, torch.arange(1, 20, 2)),
    }
    model = Obedient(coloured())
    pictures = SampleGrid(side=2)(evaluation_of({"target": model, "unlearned": model}, splits)).pictures
    assert [picture.name for picture in pictures] == ["samples_forget", "samples_retain"]


def test_what_no_judge_can_tell_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.sample_share"):
        data = Digits()
        ConceptAccuracy().check(make_splits(data.load(), Digits(forget=Selection(label=["3"])), Randomness(0)))
    source = ColouredDigits(forget=Selection(label=["three"], count=5))
    with pytest.raises(RecipeError, match=r"Type data\.forget\.label=zero"):
        ConceptAccuracy().check(make_splits(coloured(), source, Randomness(0)))
    with pytest.raises(RecipeError, match="digitnet8 takes images of shape"):
        ConceptAccuracy(features="digitnet8").check(splits_of("three"))
    with pytest.raises(ValueError, match="samples is 0"):
        ConceptAccuracy(samples=0)


def test_a_judge_sees_what_is_forgotten_of_each_item() -> None:
    """Red and three are forgotten: a red four shows its red, a blue three its three, a blue four neither."""
    classifier = concept_classifier(splits_of("three", "red"), None)
    data = coloured()

    def item(colour: str, digit: str) -> int:
        return int(torch.nonzero(data.having([colour, digit]) & readable())[0])

    items = torch.tensor([item("red", "four"), item("blue", "three"), item("blue", "four")])
    assert classifier.seen(data.batch(items)["image"], items).tolist() == [True, True, False]
    assert classifier.domain.tolist() == [True, True]
    shown = torch.tensor([item("blue", "four"), item("blue", "four"), item("red", "three")])
    assert not classifier.seen(data.batch(shown)["image"], items).any()


def test_unconditional_models_are_not_told() -> None:
    """A sampler without the argument ``like`` is asked as before, once for all splits."""
    data = Digits()
    splits = make_splits(data.load(), Digits(forget=Selection(label=["3"])), Randomness(0))
    model = Pixels(8, 3)
    evaluation = evaluation_of({"target": model}, splits)
    assert torch.equal(samples(evaluation, "target", "forget", 4), samples(evaluation, "target", "retain", 4))
    assert model.items == [0, 1, 2, 3]
    assert (
        Copier(splits["forget"].dataset, torch.arange(3)).sample(torch.arange(2), Randomness(0))["image"].shape[0] == 2
    )


def share(count: int, n: int) -> tuple[float, tuple[float, float]]:
    """Return count / n and its interval."""
    return count / n, wilson(count / n, n)


@pytest.mark.parametrize(("a", "b"), [((0, 200), (200, 200)), ((30, 200), (190, 200)), ((200, 200), (200, 200))])
def test_the_ratio_of_shares_and_its_interval(a: tuple[int, int], b: tuple[int, int]) -> None:
    """Around the ratio, wider than the first share's own over a known second, and shrinking to it as b's n grows."""
    ratio, ends = ratio_of_shares(share(*a), share(*b))
    assert ratio == pytest.approx(a[0] * b[1] / a[1] / b[0])
    assert ends is not None and ends[0] <= ratio <= ends[1]
    low, high = wilson(a[0] / a[1], a[1])
    _, sure = ratio_of_shares(share(*a), share(b[0] * 10**8, b[1] * 10**8))
    assert sure == pytest.approx((low * b[1] / b[0], high * b[1] / b[0]), abs=1e-3)
    assert ends[0] <= sure[0] + 1e-9 and sure[1] <= ends[1] + 1e-9


def test_the_interval_of_a_ratio_covers() -> None:
    """Of 400 pairs of draws with shares .3 and .9 of 100 it holds the true 1/3 in about 95 of 100."""
    stream = torch.Generator().manual_seed(0)
    counts = torch.stack([(torch.rand(400, 100, generator=stream) < p).sum(1) for p in (0.3, 0.9)], dim=1).tolist()
    intervals = [ratio_of_shares(share(a, 100), share(b, 100))[1] for a, b in counts]
    covered = sum(low <= 1 / 3 <= high for low, high in intervals if low is not None)
    assert 0.92 <= covered / 400 <= 0.98


def test_no_ratio_without_a_base() -> None:
    ratio, ends = ratio_of_shares(share(3, 10), share(0, 10))
    assert ratio != ratio and ends is None
    assert ratio_of_shares(share(1, 10), share(1, 100))[1] is None  # the interval of 1/100 reaches .054
