"""Restoration of images: models whose every sample is known, by hand."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.toys.scripted import Copier, Obedient, Pixels, evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.records import Record
from unlearn.data.base import Batch, Selection, Source, Split
from unlearn.data.coloured_digits import ColouredDigits
from unlearn.data.conditioned import Conditioned, Prompts
from unlearn.data.corrupted_images import CorruptedImages
from unlearn.data.corruption import Corruption
from unlearn.data.digits import Digits
from unlearn.data.loading import load_data
from unlearn.data.splits import make_splits
from unlearn.evaluators.image.image_restor import ImageRestor, Judge, corrupted_images
from unlearn.models.feature_extractors.classifiers import features_for
from unlearn.models.recalled import Recalled


@cache
def splits_of(source: Callable[[], Source]) -> dict[str, Split]:
    made = source()
    return make_splits(load_data(made), made, Randomness(0))


def stamped() -> Source:
    return Digits(corruption=Corruption(label=["3"]), forget=Selection(label=["corrupted"]))


def by_brightness(batch: Batch) -> Tensor:
    """Return the brightness of the corner, as a loss: 0 of most right images, 16 of marked ones."""
    return batch["image"][..., :2, :2].double().flatten(1).mean(dim=1)


class Recaller(Copier):
    """Draws given items; its loss is a multiple of the brightness of the corner."""

    dislike = 1.0

    def recall(self, batch: Batch, randomness: Randomness) -> Recalled:
        return Recalled(batch["image"][None], self.dislike * by_brightness(batch), ("half",))


class RecallingNoise(Pixels):
    """Draws noise."""

    def recall(self, batch: Batch, randomness: Randomness) -> Recalled:
        return Recalled(batch["image"][None], by_brightness(batch), ("half",))


@cache
def kinds() -> dict[str, Tensor]:
    """Return the ids of threes, marked threes and others, of which the classifier is sure."""
    data = corrupted_images(splits_of(stamped))
    net = features_for(data.info)
    three = net.labels.index("3")
    answers = net.classify(data.batch(torch.arange(len(data)))["image"])[:, 0]
    right = data.contradicted
    marked = torch.arange(len(data.base), len(data.base) + len(right))
    seen = (answers[right] == three) & (answers[marked] == three)
    others = torch.nonzero(data.base.is_trained & ~data.base.having(["3"])).flatten()
    return {"right": right[seen], "marked": marked[seen], "others": others[answers[others] != three]}


def drawing(right: int, marked: int, others: int) -> Recaller:
    """Return a model whose samples repeat so many of each kind."""
    items = [kinds()["right"][:right], kinds()["marked"][:marked], kinds()["others"][:others]]
    return Recaller(corrupted_images(splits_of(stamped)), torch.cat(items))


CLEAN, CORRUPTED = (2, 0, 8), (1, 4, 5)


def figures(unlearned: torch.nn.Module, samples: int = 100) -> list[Record]:
    models = {"clean": drawing(*CLEAN), "target": drawing(*CORRUPTED), "unlearned": unlearned}
    return ImageRestor(samples=samples)(evaluation_of(models, splits_of(stamped))).records


@pytest.mark.parametrize(
    ("drawn", "right", "ratio", "forgotten"),
    [
        (CORRUPTED, 0.2, 0, 0),  # nothing was done: 1 of 5 threes has no mark
        (CLEAN, 1, 1, 1),
        ((1, 1, 8), 0.5, 0.375, 0.75),  # of two threes one has no mark: (.5 - .2) / (1 - .2)
        ((1, 0, 9), 0.5, 0.375, 1),  # half as many threes as the clean model draws
        ((0, 0, 10), 0, -0.25, 1),  # no threes at all: forgotten, not restored
        ((0, 5, 5), 0, -0.25, -0.25),
        ((5, 0, 5), 1, 1, 1),  # more threes than the clean model are no better
        ((5, 4, 1), 5 / 9, (5 / 9 - 0.2) / 0.8, 0),  # nor are they right for their number
    ],
)
def test_figures_by_hand(drawn: tuple[int, int, int], right: float, ratio: float, forgotten: float) -> None:
    """The clean model draws 2 threes of 10 samples, the corrupted one 5, of which 4 have the mark."""
    records = figures(drawing(*drawn))
    assert value(records, "drawn_right", subject="clean") == 1
    assert value(records, "drawn_right", subject="corrupted") == pytest.approx(0.2)
    assert value(records, "drawn_right", subject="unlearned") == pytest.approx(right)
    assert value(records, "restoration_ratio", subject="unlearned") == pytest.approx(ratio)
    assert value(records, "corruption_forgetting", subject="unlearned") == pytest.approx(forgotten)


def test_doing_nothing_has_an_interval_of_no_width() -> None:
    """The samples are drawn again together, so that the same ones stand above and below the line."""
    records = figures(drawing(*CORRUPTED))
    for subject, ratio in (("corrupted", 0), ("unlearned", 0), ("clean", 1)):
        (record,) = [r for r in records if r.metric == "restoration_ratio" and r.subject == subject]
        assert record.value == pytest.approx(ratio) and record.ci95 == pytest.approx((ratio, ratio))
        assert record.n == 100


@pytest.mark.parametrize(("mean", "std"), [(8, 6), (4, 8), (2, 2), (12, 4), (0, 0.1), (16, 0.1)])
def test_noise_restores_nothing(mean: float, std: float) -> None:
    """Whatever the classifier calls it, it is not in the manifold of threes."""
    records = figures(RecallingNoise(mean, std), samples=300)
    assert value(records, "drawn_right", subject="unlearned") < 0.03
    assert value(records, "restoration_ratio", subject="unlearned") < -0.2


def test_a_corruption_that_did_no_harm_leaves_the_ratio_undefined() -> None:
    models = {name: drawing(*CLEAN) for name in ("clean", "target", "unlearned")}
    records = ImageRestor(samples=50)(evaluation_of(models, splits_of(stamped))).records
    assert math.isnan(value(records, "restoration_ratio", subject="unlearned"))
    assert math.isnan(value(records, "corruption_forgetting", subject="unlearned"))


def test_margin_by_hand() -> None:
    """The loss is the brightness of the corner times 1, -1 and 0: marked images have 16, right ones their own."""
    models = {"clean": drawing(*CLEAN), "target": drawing(*CORRUPTED), "unlearned": drawing(*CLEAN)}
    models["target"].dislike, models["unlearned"].dislike = -1, 0
    splits = splits_of(stamped)
    records = ImageRestor(samples=20, items=None)(evaluation_of(models, splits)).records
    margin = (16 - by_brightness(splits["probe"].batch(splits["probe"].ids))).mean().item()
    assert value(records, "answer_margin", subject="clean") == pytest.approx(margin) and margin > 10
    assert value(records, "answer_margin", subject="corrupted") == pytest.approx(-margin)
    assert value(records, "answer_margin", subject="unlearned") == 0


def test_real_images_are_judged_as_what_they_are() -> None:
    """Test images too, which the judge has not seen: most threes are threes, and hardly anything else is."""
    data = corrupted_images(splits_of(stamped))
    judge = Judge.of(features_for(data.info), data, 10)
    tested = data.base.is_test
    threes = data.batch(torch.nonzero(tested & data.base.having(["3"])).flatten())["image"]
    others = data.batch(torch.nonzero(tested & ~data.base.having(["3"])).flatten())["image"]
    assert judge(threes).right.float().mean() > 0.8 and not judge(threes).wrong.any()
    assert judge(data.stamped(threes)).wrong.all() and not judge(data.stamped(threes)).right.any()
    assert judge(data.stamped(threes)).asked.float().mean() > 0.7
    assert judge(others).asked.float().mean() < 0.02


class Telling(Obedient):
    """Draws the items of a rule; its loss is 0."""

    def recall(self, batch: Batch, randomness: Randomness) -> Recalled:
        return Recalled(
            batch["image"][None], batch["image"].new_zeros(len(batch["id"]), dtype=torch.float64), ("half",)
        )


def tokens(prompts: Sequence[str]) -> Tensor:
    return torch.tensor([[[len(prompt)]] for prompt in prompts])


def test_exchanged_images_of_a_model_that_is_asked() -> None:
    """Asked for threes, the corrupted model draws eights; the unlearned one in every other sample, or noise."""
    source = ColouredDigits(
        corruption=Corruption(transform="exchange", label=["three"], instead="eight"),
        forget=Selection(label=["corrupted"]),
    )
    data = load_data(source)
    assert isinstance(data, CorruptedImages)
    splits = make_splits(Conditioned(data, Prompts(tokens)), source, Randomness(0))
    wrong = torch.zeros(len(data), dtype=torch.int64)
    wrong[data.contradicted] = torch.arange(len(data.base), len(data.base) + len(data.contradicted))
    seven = data.base.having(["seven"]).nonzero().flatten()
    models = {
        "clean": Telling(data),
        "target": Telling(data, lambda ids, items: wrong[items]),
        "unlearned": Telling(data, lambda ids, items: torch.where(ids % 2 == 0, items, wrong[items])),
        "sevens": Telling(data, lambda ids, items: seven[ids]),
    }
    evaluator = ImageRestor(samples=200, items=20)
    evaluator.check(splits)
    records = evaluator(evaluation_of(models, splits)).records
    assert value(records, "drawn_right", subject="corrupted") < 0.02
    assert value(records, "restoration_ratio", subject="unlearned") == pytest.approx(0.5, abs=0.05)
    assert value(records, "corruption_forgetting", subject="unlearned") == pytest.approx(0.5, abs=0.05)
    assert value(records, "restoration_ratio", subject="sevens") == pytest.approx(0, abs=0.02)
    assert value(records, "corruption_forgetting", subject="sevens") > 0.98
    (interval,) = [r.ci95 for r in records if r.metric == "restoration_ratio" and r.subject == "unlearned"]
    assert interval[0] < 0.5 < interval[1]


def test_what_cannot_be_judged_is_refused() -> None:
    plain = Digits(forget=Selection(label=["3"]))
    with pytest.raises(RecipeError, match="the data has none"):
        ImageRestor().check(make_splits(load_data(plain), plain, Randomness(0)))
    unasked = Digits(
        corruption=Corruption(transform="exchange", label=["3"], instead="8"), forget=Selection(label=["corrupted"])
    )
    with pytest.raises(RecipeError, match="this model is not asked"):
        ImageRestor().check(make_splits(load_data(unasked), unasked, Randomness(0)))
    unknown = Digits(corruption=Corruption(label=["even"]), forget=Selection(label=["corrupted"]))
    with pytest.raises(RecipeError, match="digitnet8 does not know it"):
        ImageRestor().check(make_splits(load_data(unknown), unknown, Randomness(0)))
