"""Shares, distances and pictures of samples, on models that copy real images."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.toys.scripted import Copier, Pixels, evaluation_of, value
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Selection, Split
from unlearn.data.digits import Digits
from unlearn.data.in_memory import ImagesInMemory
from unlearn.data.splits import forgotten_names, make_splits
from unlearn.evaluators.figures import FORGOTTEN, FRAME, Panel, mosaic, panels
from unlearn.evaluators.image.feature_distance import FeatureDistance, real_ids
from unlearn.evaluators.image.sample_grid import SampleGrid
from unlearn.evaluators.image.sample_share import SampleShare
from unlearn.evaluators.sampling import samples
from unlearn.models.feature_extractors.classifiers import features_for

Splits = dict[str, Split]


@pytest.fixture(scope="module")
def by_digit(digits: Dataset) -> dict[str, Tensor]:
    """Return the ids of the images that the classifier names rightly, by digit."""
    net = features_for(digits.info)
    classes, known = net.classify(digits.batch(torch.arange(len(digits)))["image"])[:, 0], net.known(digits)[:, 0]
    return {label: torch.nonzero((classes == i) & (known == i)).flatten() for i, label in enumerate(net.labels)}


def copier(digits: Dataset, by_digit: dict[str, Tensor], **counts: int) -> Copier:
    """Return a sampler that draws so many of each digit in turn: ``d3=2, d1=8`` draws a fifth of threes."""
    return Copier(digits, torch.cat([by_digit[name[1:]][:count] for name, count in counts.items()]))


def test_shares_of_a_sampler_made_by_hand(digits: Dataset, by_digit: dict[str, Tensor], threes: Splits) -> None:
    """The target draws 20 threes, 60 ones, 20 sevens of 100; the unlearned model 75 ones and 25 sevens.

    Wilson's interval for 40 of 200, z = 1.96: centre (0.2 + z^2 / 400) / (1 + z^2 / 200) = 0.2057, half width
    z sqrt(0.16 / 200 + z^2 / 160000) / (1 + z^2 / 200) = 0.0552.
    """
    models = {
        "target": copier(digits, by_digit, d3=20, d1=60, d7=20),
        "unlearned": copier(digits, by_digit, d1=75, d7=25),
    }
    findings = SampleShare(samples=200)(evaluation_of(models, threes))
    shares = {(r.subject, r.about["category"]): r for r in findings.records if r.metric == "sample_share"}
    assert [shares["target", d].value for d in "317"] == [0.2, 0.6, 0.2]
    assert [shares["unlearned", d].value for d in "317"] == [0, 0.75, 0.25]
    assert {r.split for key, r in shares.items() if key[1] == "3"} == {"forget"}
    assert {r.split for key, r in shares.items() if key[1] != "3"} == {"retain"}
    assert shares["target", "3"].ci95 == pytest.approx((0.1505, 0.2609), abs=1e-4)
    assert value(findings.records, "classifier_accuracy") >= 0.97
    assert findings.pictures[0].png.startswith(b"\x89PNG")


def test_several_forgotten_digits_have_a_sum(digits: Dataset, by_digit: dict[str, Tensor]) -> None:
    splits = make_splits(digits, Digits(forget=Selection(label=["3", "7"])), Randomness(0))
    models = {"target": copier(digits, by_digit, d3=20, d1=50, d7=30)}
    records = SampleShare(samples=100)(evaluation_of(models, splits)).records
    assert records[0].about == {}
    assert (records[0].split, records[0].value) == ("forget", 0.5)
    assert [r.about for r in records if r.split == "forget"] == [{}, {"category": "3"}, {"category": "7"}]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(label=["3"]), ["3"]),
        (Selection(label=["3"], count=120), ["3"]),
        (Selection(label=["3"], count=8), []),
        (Selection(ids=[0, 1, 2]), []),
        (Selection(label=["even"]), ["0", "2", "4", "6", "8", "even"]),
        (Selection(label=["bold"]), ["bold"]),
    ],
)
def test_what_counts_as_forgotten(digits: Dataset, selection: Selection, expected: list[str]) -> None:
    assert forgotten_names(make_splits(digits, Digits(forget=selection), Randomness(0))["forget"]) == expected


def test_labels_that_the_net_does_not_know_are_named() -> None:
    shirts = ImagesInMemory(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), ["shirt", "shoe"] * 10, [frozenset()] * 20, 17)
    splits = make_splits(shirts, Digits(forget=Selection(label=["shirt"])), Randomness(0))
    with pytest.raises(RecipeError, match=r"digitnet8.*shirt, shoe.*To train"):
        SampleShare().check(splits)


def test_samples_are_drawn_once_and_extended(threes: Splits) -> None:
    model = Pixels(8, 3)
    evaluation = evaluation_of({"target": model}, threes)
    first = samples(evaluation, "target", "retain", 10)
    assert model.items == list(range(10))
    other = replace(evaluation, randomness=Randomness(0, "other evaluator"))
    more = samples(other, "target", "forget", 30, batch_size=4)
    assert model.items == list(range(30))
    assert torch.equal(first, more[:10])
    assert torch.equal(more, samples(evaluation_of({"target": Pixels(8, 3)}, threes), "target", "", 30))
    assert not torch.equal(more, samples(evaluation_of({"target": model}, threes, seed=1), "target", "", 30))


def test_a_new_evaluation_draws_anew(threes: Splits) -> None:
    model = Pixels(8, 3)
    before = samples(evaluation_of({"target": model}, threes), "target", "", 10)
    model.mean += 4
    assert not torch.equal(before, samples(evaluation_of({"target": model}, threes), "target", "", 10))


def test_real_images_exclude_the_forgotten_digit(digits: Dataset, threes: Splits) -> None:
    ids = real_ids(threes)
    assert "3" not in {digits.labels[i] for i in ids.tolist()}
    assert len(ids) == sum(label != "3" for label in digits.labels)


def test_distances_order_samplers_as_they_should(digits: Dataset, threes: Splits) -> None:
    """Copies of the real images are at the floor; with threes among them they are off, and ones only are far off."""
    real = real_ids(threes)
    every = torch.arange(len(digits))
    models = {
        "unlearned": Copier(digits, real),
        "target": Copier(digits, every),
        "corrupted": Copier(digits, every[digits.having(["1"])]),
    }
    records = FeatureDistance(samples=len(real))(evaluation_of(models, threes)).records
    for metric in ("frechet_digitnet8", "kernel_digitnet8"):
        right, with_threes, ones = (
            next(r for r in records if r.metric == metric and r.subject == s)
            for s in ("unlearned", "target", "corrupted")
        )
        floor = next(r for r in records if r.metric == metric and r.about == {"score": "floor"})
        assert abs(right.value) <= 0.01 * ones.value
        assert right.value < with_threes.value < ones.value
        assert abs(floor.value) < 0.1 * ones.value
        assert with_threes.ci95 is not None
        assert with_threes.ci95[0] < with_threes.value < with_threes.ci95[1]
        assert ones.ci95 is not None
        assert with_threes.ci95[1] < ones.ci95[0]
    assert next(r for r in records if r.subject == "target").about == {}  # the floor comes last


def test_distances_do_not_depend_on_the_batch_size(digits: Dataset, threes: Splits) -> None:
    def found(batch_size: int) -> list[float]:
        evaluation = evaluation_of({"target": Pixels(8, 3)}, threes)
        return [r.value for r in FeatureDistance(samples=50, items=100, batch_size=batch_size)(evaluation).records]

    assert found(7) == pytest.approx(found(64), rel=1e-4)


class Means(torch.nn.Module):
    """Embeds an image as the means of its channels; it says how images come in."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and images.dtype == torch.uint8
        return images.float().mean(dim=[2, 3])


def test_distances_in_a_net_of_ones_own(threes: Splits, tmp_path: Path) -> None:
    """Grey levels 0 ... 16 come in as 0 ... 255 in three channels; in means of channels, distances are exact.

    Three equal features: the Frechet distance is 3 (m - m_r)^2 + 3 (s - s_r)^2, m and s of the images' means.
    """
    path = tmp_path / "own-net.1.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        torch.jit.script(Means()).save(str(path))
    evaluation = evaluation_of({"target": Pixels(8, 3)}, threes)
    records = FeatureDistance(samples=60, items=80, bootstraps=2, features=str(path))(evaluation).records
    ids = real_ids(threes)
    ids = ids[evaluation.randomness.child("real").permutation(len(ids))[:80]]
    drawn, real = (
        (images.double() * 255 / 16).round().mean(dim=(1, 2, 3))
        for images in (samples(evaluation, "target", "retain", 60), threes["retain"].batch(ids)["image"])
    )
    expected = 3 * (drawn.mean() - real.mean()) ** 2 + 3 * (drawn.std() - real.std()) ** 2
    found = next(r for r in records if r.metric == "frechet_own_net_1" and not r.about)
    assert found.value == pytest.approx(expected.item(), rel=1e-4)
    assert found.detector["name"] == "own_net_1" and len(found.detector["sha256"]) == 64
    with pytest.raises(RecipeError, match="there is no such file"):
        FeatureDistance(features="other.pt").check(threes)
    path.write_bytes(b"no script")
    with pytest.raises(RecipeError, match="is no TorchScript file"):
        FeatureDistance(features=str(path)).check(threes)


def test_too_few_real_images_are_refused(digits: Dataset, threes: Splits) -> None:
    few = {"forget": threes["forget"], "retain": replace(threes["retain"], ids=threes["retain"].ids[:3])}
    with pytest.raises(RecipeError, match=r"evaluate\.feature_distance=null"):
        FeatureDistance().check(few)


def test_a_mosaic_is_sharp_and_frames_what_is_marked() -> None:
    """Two 1 x 1 images, black and white, 2 levels: squares of 56 pixels between margins of 5, the second framed."""
    images = torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1)
    sheet = mosaic(Panel("two", images, 2, torch.tensor([False, True])), columns=8)
    assert sheet.shape == (66, 132, 3)
    assert (sheet[5:61, 5:61] == 0).all()
    assert (sheet[5:61, 71:127] == 255).all()
    assert (sheet[:, :5] == 255).all()
    frame = [int(FORGOTTEN[i : i + 2], 16) for i in (1, 3, 5)]
    assert (sheet[1 : 1 + FRAME, 67:131] == frame).all()


def test_the_png_holds_the_mosaic_pixel_by_pixel() -> None:
    """Also with odd sizes: nothing is blurred between the array and the file."""
    images = torch.randint(0, 256, (5, 3, 9, 7), generator=torch.Generator().manual_seed(0), dtype=torch.int64).byte()
    panel = Panel("five", images, 256)
    for content, stacked in (([panel], False), ([panel, panel], False), ([panel, panel], True)):
        png = np.asarray(Image.open(BytesIO(panels(content, 3, stacked))).convert("RGB"))
        sheet = mosaic(panel, 3)
        height, width = sheet.shape[:2]
        assert (png[-height:, -width:] == sheet).all() or (png[-height:, :width] == sheet).all()
        assert panels(content, 3, stacked) == panels(content, 3, stacked)


def test_grids_frame_what_the_classifier_calls_forgotten(
    digits: Dataset, by_digit: dict[str, Tensor], threes: Splits
) -> None:
    models = {
        "target": copier(digits, by_digit, d3=4, d1=4),
        "unlearned": copier(digits, by_digit, d1=8),
        "retrained": copier(digits, by_digit, d7=8),
    }
    found = {p.name: p for p in SampleGrid(side=4, search=32)(evaluation_of(models, threes)).pictures}
    assert list(found) == ["forget", "samples", "became"]
    assert "“3”" in found["samples"].caption
    frame = np.array([int(FORGOTTEN[i : i + 2], 16) for i in (1, 3, 5)])

    def framed(name: str) -> int:
        pixels = np.asarray(Image.open(BytesIO(found[name].png)).convert("RGB"))
        return int((pixels == frame).all(-1).sum())

    one = (56 + 2 * FRAME) ** 2 - 56**2
    assert framed("samples") == 8 * one
    assert framed("became") == 16 * one
    assert framed("forget") == 0


def test_no_net_no_frames_unless_one_is_asked_for() -> None:
    """6 x 6 images: there is no packaged net."""
    images = torch.randint(0, 17, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0)).byte()
    data = ImagesInMemory(images, ["a", "b"] * 20, [frozenset()] * 40, 17)
    splits = make_splits(data, Digits(forget=Selection(label=["a"])), Randomness(0))
    evaluation = evaluation_of({"target": Pixels(8, 3, (1, 6, 6)), "unlearned": Pixels(8, 3, (1, 6, 6))}, splits)
    assert [p.name for p in SampleGrid(side=3)(evaluation).pictures] == ["forget", "samples"]
    with pytest.raises(RecipeError, match="digitnet8 takes images of shape"):
        SampleGrid(features="digitnet8")(evaluation)


def test_out_of_range_settings_are_refused() -> None:
    for make, text in ((SampleShare, "samples is 0"), (FeatureDistance, "samples is 0")):
        with pytest.raises(ValueError, match=text):
            make(samples=0)
    with pytest.raises(ValueError, match="side is 0"):
        SampleGrid(side=0)
