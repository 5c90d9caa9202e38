"""Distance of generators, precision and recall, and shares of attributes: brute force, and generators that lack."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toys.lively_gan import lively, moved, of, pixel_net
from tests.toys.scripted import value
from unlearn.core.errors import RecipeError
from unlearn.evaluators.image.attribute_share import AttributeShare
from unlearn.evaluators.image.generator_distance import GeneratorDistance
from unlearn.evaluators.sampling import samples
from unlearn.evaluators.statistics import frechet, inside_manifold
from unlearn.models.feature_extractors.classifiers import load_features
from unlearn.models.feature_extractors.embedders import attribute_net


def test_manifolds_on_a_line() -> None:
    """At 0, 1, 3 with k = 1 the radii are 1, 1, 2: the manifold is [-1, 2] and [1, 5]. With k = 2 they are 3, 2, 3."""
    line = torch.tensor([[0.0], [1], [3]])
    points = torch.tensor([[-1.1], [-1.0], [2.0], [5.0], [5.1], [6.0]])
    assert inside_manifold(points, line, 1).tolist() == [False, True, True, True, False, False]
    assert inside_manifold(points, line, 2).tolist() == [True, True, True, True, True, True]
    assert inside_manifold(torch.tensor([[6.1], [-3.0]]), line, 2).tolist() == [False, True]


def test_manifolds_by_brute_force() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(20, 3), torch.randn(15, 3) + 1
    wanted = []
    for point in a:
        inside = False
        for number, centre in enumerate(b):
            radius = sorted((centre - other).norm().item() for place, other in enumerate(b) if place != number)[2]
            inside |= (point - centre).norm().item() <= radius
        wanted.append(inside)
    assert inside_manifold(a, b, 3).tolist() == wanted and 0 < sum(wanted) < 20


def test_an_unchanged_generator_is_at_the_floor_and_a_narrow_one_lacks_recall(tmp_path: Path) -> None:
    net, target = pixel_net(tmp_path), lively()
    centre = target.w_avg
    narrow = moved(target, lambda ws: centre + 0.2 * (ws - centre))
    judge = GeneratorDistance(samples=60, features=[net])
    evaluation = of(target, unlearned=target, retrained=narrow)
    records = judge(evaluation).records
    frechets = {r.subject: r.value for r in records if r.metric == "frechet_pixels"}
    assert frechets["unlearned"] == pytest.approx(frechets["target"])  # the same samples as the floor's first half
    assert frechets["retrained"] > 1.5 * frechets["target"]
    own = {r.subject: r.value for r in records if r.metric == "recall"}
    assert own["retrained"] < 0.6 * own["unlearned"] == pytest.approx(0.6 * own["target"])
    assert value(records, "precision", subject="retrained") >= value(records, "precision", subject="unlearned") - 0.05
    drawn = samples(evaluation, "target", "", 120).float() / 8 - 1
    a, b = drawn.flatten(1).split(60)
    assert frechets["target"] == pytest.approx(frechet(a, b), rel=1e-4)
    floors = [r for r in records if r.subject == "target"]
    assert len(floors) == 3 and all(r.about["score"] == "floor" and r.direction == "none" for r in floors)


def test_shares_of_attributes_are_the_classifiers() -> None:
    target = lively()
    evaluation = of(target, unlearned=moved(target, lambda ws: target.w_avg.expand_as(ws)))
    records = AttributeShare(attributes=["3"], samples=40)(evaluation).records
    images = samples(evaluation, "target", "", 40)
    net = load_features("digitnet8", 17)
    likely = net.probabilities(images) >= 0.5
    shares = {(r.subject, r.about["category"]): r for r in records}
    for number, label in enumerate(net.labels):
        assert shares["target", label].value == pytest.approx(likely[:, number].float().mean().item())
        assert shares["unlearned", label].value in (0, 1)  # one image
    assert shares["target", "3"].direction == "lower" and shares["target", "3"].split == "forget"
    assert shares["target", "4"].direction == "retrained" and shares["target", "4"].detector["threshold"] == "0.5"
    lax = AttributeShare(attributes=["3"], samples=40, threshold=0.01)(evaluation).records
    assert sum(r.value for r in lax) > sum(r.value for r in records)
    with pytest.raises(RecipeError, match="knows no 'beard'"):
        AttributeShare(attributes=["beard"]).check(evaluation.splits)
    with pytest.raises(ValueError, match="between 0 and 1"):
        AttributeShare(threshold=1.0)


class Bright(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_classifiers_by_name_and_by_path(tmp_path: Path) -> None:
    """A script of one number gives a sigmoid; the packaged net of faces guesses from looks; dlib's names nothing."""
    torch.jit.script(Bright()).save(str(tmp_path / "bright.pt"))
    net = attribute_net(str(tmp_path / "bright.pt"), (1, 4, 4))
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert net.labels == ("0",)
    torch.testing.assert_close(net(images), torch.tensor([[0.5], [0.7310586]]))
    faces = attribute_net(None, (3, 32, 32))
    assert faces.labels == ("looks_male", "looks_over_40") and faces.detector["labels"] == "looks_male, looks_over_40"
    found = faces(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert found.shape == (2, 2) and (found >= 0).all() and (found <= 1).all()
    digits = attribute_net("digitnet8", (1, 8, 8))
    grey = torch.randint(0, 17, (3, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(digits(grey / 8 - 1), load_features("digitnet8").probabilities(grey))
    with pytest.raises(RecipeError, match="names nothing"):
        attribute_net("dlib_face", (3, 32, 32))
    with pytest.raises(ValueError, match="below samples"):
        GeneratorDistance(samples=3)
