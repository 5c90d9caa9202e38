"""Splits: disjoint, drawn by the seed, and wrong selections refused with a remedy."""

from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset, Selection, Source
from unlearn.data.splits import make_splits, train_split


class Numbers(Dataset):
    """The numbers 0 ... 39: label by parity, attribute for multiples of five, every fourth a test item."""

    def __init__(self) -> None:
        self.labels = ["even" if n % 2 == 0 else "odd" for n in range(40)]
        self.attributes = [frozenset({"five"}) if n % 5 == 0 else frozenset() for n in range(40)]
        self.is_test = torch.arange(40) % 4 == 3
        self.fingerprint = "numbers"
        self.info = {}

    def batch(self, ids: Tensor) -> Batch:
        return {"id": ids}


@dataclass
class NumberSource(Source):
    def load(self) -> Dataset:
        return Numbers()


def draw(forget: Selection, seed: int = 0, **others: Selection) -> dict[str, list[int]]:
    source = NumberSource(forget=forget, **others)
    splits = make_splits(source.load(), source, Randomness(seed, "splits"), lambda ids: ids / 40)
    return {name: split.ids.tolist() for name, split in splits.items()}


@pytest.mark.parametrize(
    "forget",
    [
        Selection(label=["odd"]),
        Selection(all_of=["even", "five"]),
        Selection(without=["five"]),
        Selection(ids=[0, 1, 2]),
        Selection(likelihood_quantile=(0.4, 0.6), count=3),
    ],
)
def test_splits_are_disjoint_and_nothing_is_lost(forget: Selection) -> None:
    splits = draw(forget)
    for first, second in combinations(splits.values(), 2):
        assert not set(first) & set(second)
    assert sorted(item for ids in splits.values() for item in ids) == list(range(40))
    trained_on = set(splits["forget"]) | set(splits["retain"])
    assert trained_on == {n for n in range(40) if n % 4 != 3}


def test_conditions_mean_what_they_say() -> None:
    assert draw(Selection(label=["odd"]))["forget"] == [n for n in range(40) if n % 4 == 1]
    assert draw(Selection(all_of=["even", "five"]))["forget"] == [0, 10, 20, 30]
    assert draw(Selection(label=["odd", "five"]))["forget"] == [
        n for n in range(40) if n % 4 != 3 and (n % 2 or n % 5 == 0)
    ]
    assert all(16 <= n <= 24 for n in draw(Selection(likelihood_quantile=(0.4, 0.6)))["forget"])
    assert draw(Selection(label=["five"]))["holdout"] == [15, 35]
    assert draw(Selection(count=2))["holdout"] == [3, 11, 19, 27, 35]  # no label: every second test item stands for all


def test_a_count_is_drawn_by_the_seed() -> None:
    first, second = (draw(Selection(count=6), seed)["forget"] for seed in (0, 1))
    assert len(first) == 6 and first != second and first == draw(Selection(count=6), 0)["forget"]


@pytest.mark.parametrize(
    ("forget", "others", "message"),
    [
        (Selection(), {}, "data.forget is empty"),
        (Selection(label=["add"]), {}, "no 'add'. Did you mean: odd"),
        (Selection(ids=[99]), {}, "no item 99"),
        (Selection(ids=[3]), {}, "only training items"),
        (Selection(label=["odd"], without=["odd"]), {}, "selects no training item"),
        (Selection(count=500), {}, "Type a smaller count"),
        (Selection(label=["odd", "even"]), {}, "retain set is empty"),
        (Selection(label=["odd"]), {"retain": Selection(label=["odd", "five"])}, "must be disjoint"),
        (Selection(label=["odd"]), {"holdout": Selection(ids=[1])}, "must be disjoint"),
    ],
)
def test_wrong_selections_are_refused(forget: Selection, others: dict[str, Selection], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        draw(forget, **others)


def test_a_quantile_asks_for_a_likelihood() -> None:
    source = NumberSource(forget=Selection(likelihood_quantile=(0.4, 0.6)))
    with pytest.raises(RecipeError, match="likelihood_quantile"):
        make_splits(source.load(), source, Randomness(0, "splits"))


def test_the_training_split_holds_no_test_item() -> None:
    assert train_split(Numbers()).ids.tolist() == [n for n in range(40) if n % 4 != 3]


class MarkedNumbers(Numbers):
    """The same, where 3, 7 and 11 are marked as holdout, and 39 asks something of another kind."""

    def __init__(self) -> None:
        super().__init__()
        marks = {3: "holdout", 7: "holdout", 11: "holdout", 39: "evaluation"}
        self.attributes = [
            more | {marks[n]} if n in marks else more for n, more in zip(range(40), self.attributes, strict=True)
        ]


class CorruptedNumbers(Numbers):
    """The same, where 0, 1 and 2 have wrong content, which contradicts 4, 5 and 6."""

    def __init__(self) -> None:
        super().__init__()
        self.is_corrupt = torch.arange(40) < 3

    def having_form(self, name: str) -> Tensor:
        numbers = torch.arange(40)
        return (numbers >= 4) & (numbers <= 7) if name == "corrupted" else numbers < 0


def splits_of(dataset: Dataset, **selections: Selection) -> dict[str, list[int]]:
    source = NumberSource(**selections)
    return {name: split.ids.tolist() for name, split in make_splits(dataset, source, Randomness(0, "splits")).items()}


def test_a_marked_holdout_is_taken() -> None:
    """All marked items are test items and odd; only conditions that some of them meet narrow them down."""
    data = MarkedNumbers()
    assert splits_of(data, forget=Selection(label=["odd"]))["holdout"] == [3, 7, 11]
    assert splits_of(data, forget=Selection(label=["even"]))["holdout"] == [3, 7, 11]
    assert splits_of(data, forget=Selection(ids=[0]))["holdout"] == [3, 7, 11]
    named = splits_of(data, forget=Selection(label=["five"]), holdout=Selection(label=["evaluation"]))
    assert named["holdout"] == [39] and 3 in named["test"]


def test_questions_of_another_distribution_are_no_holdout() -> None:
    data = MarkedNumbers()
    data.attributes = [frozenset({"evaluation"}) if out else frozenset() for out in data.is_test.tolist()]
    assert "holdout" not in splits_of(data, forget=Selection(label=["odd"]))
    assert "holdout" not in splits_of(data, forget=Selection(ids=[0]))
    data.attributes = Numbers().attributes  # the control: unmarked, they stand for the forget set
    assert splits_of(data, forget=Selection(label=["odd"]))["holdout"]


def test_corrupted_items_are_forgotten_or_nowhere() -> None:
    data = CorruptedNumbers()
    assert train_split(data).ids.tolist() == [n for n in range(3, 40) if n % 4 != 3]
    splits = splits_of(data, forget=Selection(ids=[0, 1]))
    assert splits["forget"] == [0, 1] and splits["probe"] == [4, 5, 6]
    assert not {0, 1, 2, 4, 5, 6} & {*splits["retain"], *splits["holdout"], *splits["test"]}
    assert splits_of(data, forget=Selection(ids=[0]), retain=Selection(ids=[5, 8]))["retain"] == [5, 8]
    assert 4 in splits_of(Numbers(), forget=Selection(ids=[0]))["retain"]  # the control: nothing contradicts it
    with pytest.raises(RecipeError, match="only training items"):
        splits_of(data, forget=Selection(ids=[0]), retain=Selection(ids=[2]))
