"""NudeNet's figures with a small ONNX detector whose boxes are known."""

from pathlib import Path

import pytest
import torch

from tests.toys.coloured_digits import coloured, splits_of
from tests.toys.detector import BELLY, BREAST, FACE, small_detector
from tests.toys.scripted import Obedient, evaluation_of
from unlearn.core.errors import RecipeError
from unlearn.evaluators.image.nudity import EXPOSED, NudeNet, Nudity, kept
from unlearn.evaluators.sampling import samples


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_detector(tmp_path_factory.mktemp("models") / "smallnet.onnx")


def test_scores_are_those_of_the_boxes_that_stay(weights: Path) -> None:
    detector = NudeNet(weights, 32)
    image = torch.zeros(3, 8, 8)
    image[0], image[2] = 0.8, 0.3  # red, and blue, of which it says nothing
    found = detector(image)
    assert found[BREAST] == pytest.approx(0.8) and found[BELLY] == pytest.approx(0.4)
    assert found[FACE] == 0 and found.count_nonzero() == 2  # the face lies on the breast, with a lower score
    image[0] = 0.28
    found = detector(image)
    assert found[FACE] == pytest.approx(0.3) and found.count_nonzero() == 1  # the other way; .14 is no candidate


def test_what_is_not_square_stands_on_black(weights: Path) -> None:
    image = torch.ones(3, 8, 4)
    assert NudeNet(weights, 32)(image)[BREAST] == pytest.approx(0.5)  # half of the square is black
    assert NudeNet(weights, 32)(torch.ones(1, 8, 8))[BREAST] == pytest.approx(1)  # grey is every channel


def test_suppression_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.7, 0, 2, 2], [0.8, 0, 2, 2], [9, 9, 2, 2]])
    # overlaps with the first: 1.3 / 2.7 = .481 and 1.2 / 2.8 = .429; the third is held against the first alone
    assert kept(boxes, torch.tensor([0.9, 0.8, 0.7, 0.2])) == [0, 2]


def test_shares_are_of_the_samples_with_a_box_that_counts(weights: Path) -> None:
    evaluation = evaluation_of({"target": Obedient(coloured())}, splits_of("three"))
    settings = {"path": str(weights), "resolution": 32, "samples": 20}
    records = Nudity(**settings, thresholds=(0.25, 0.32, 0.345))(evaluation).records
    assert len(records) == 2 * 3
    faces = Nudity(**settings, thresholds=(0.3,), labels=("FACE_FEMALE",))(evaluation).records
    shares = set()
    for record in [*records, *faces]:
        drawn = samples(evaluation, "target", record.split, 20)
        found = torch.stack([NudeNet(weights, 32)(image / 16) for image in drawn])
        counted = FACE if record in faces else [BREAST, BELLY]
        least = float(record.about["score"])
        assert record.value == (found[:, counted].view(20, -1) >= least).any(dim=1).double().mean().item()
        assert record.detector["name"] == "smallnet" and len(record.detector["sha256"]) == 64
        assert record.detector["threshold"] == record.about["score"] and record.direction == "lower"
        assert record.detector["labels"] == ("FACE_FEMALE" if record in faces else ", ".join(EXPOSED))
        shares.add(record.value)
    assert len(shares) > 2


def test_bad_input_is_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path is empty"):
        Nudity()
    with pytest.raises(ValueError, match="thresholds is"):
        Nudity(path="x", thresholds=(0.1,))
    with pytest.raises(ValueError, match="labels holds NOSE"):
        Nudity(path="x", labels=("NOSE",))
    with pytest.raises(ValueError, match="resolution is 300"):
        Nudity(path="x", resolution=300)
    with pytest.raises(RecipeError, match=r"evaluate\.nudity\.path"):
        Nudity(path=str(tmp_path / "none.onnx")).check(splits_of("three"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RecipeError, match=r"evaluate\.nudity\.path.*ONNX"):
        Nudity(path=str(broken)).check(splits_of("three"))
