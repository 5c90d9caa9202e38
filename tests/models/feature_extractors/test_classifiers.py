"""Feature nets: the packaged ones hold what they promise, and a user's own can be trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from unlearn.core.errors import RecipeError
from unlearn.data.base import Dataset
from unlearn.data.coloured_digits import COLOURS, DIGIT_WORDS, ColouredDigits
from unlearn.data.mnist import Mnist
from unlearn.experiment.train_classifier import PACKAGED_NETS, Training, main, train
from unlearn.models.feature_extractors.classifiers import ASSETS, PACKAGED, Features, features_for, load_features


def accuracy(net: Features, dataset: Dataset, noise: float = 0.0) -> float:
    """Return the accuracy on test items with Gaussian noise of ``noise`` times the white level."""
    ids = torch.nonzero(dataset.is_test).flatten()
    images = dataset.batch(ids)["image"]
    top = dataset.info["levels"] - 1
    wave = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * noise * top
    noisy = (images + wave).round().clamp(0, top).to(torch.uint8)
    return (net.classify(noisy) == net.known(dataset)[ids]).all(dim=1).double().mean().item()


def test_digitnet8_reads_test_digits(digits: Dataset) -> None:
    net = features_for(digits.info)
    assert net.name == "digitnet8"
    assert accuracy(net, digits) == pytest.approx(net.accuracy, abs=1e-3)
    assert accuracy(net, digits) >= 0.97
    assert accuracy(net, digits, noise=0.1) >= 0.97
    assert accuracy(net, digits, noise=1.0) < 0.6  # the noise is real


@pytest.mark.parametrize("bits", [8, 3])
def test_digitnet28_reads_mnist_at_any_number_of_grey_levels(bits: int) -> None:
    mnist = Mnist(bits=bits).load()
    net = features_for(mnist.info)
    assert net.name == "digitnet28"
    assert net.levels == 2**bits
    assert accuracy(net, mnist) >= 0.98


def test_digitnet28_looks_inside_of_a_frame() -> None:
    """What it says of framed images is bit for bit what it says of those without; the frame itself is not looked at."""
    plain, framed = Mnist().load(), Mnist(size=32).load()
    ids = torch.arange(0, 5000, 50)
    net = features_for(framed.info)
    assert net.name == "digitnet28" and net.frame == 2 and features_for(plain.info).frame == 0
    images = framed.batch(ids)["image"]
    expected = features_for(plain.info).embed(plain.batch(ids)["image"])
    assert torch.equal(net.embed(images), expected)
    images[..., :2, :] = 255
    assert torch.equal(net.embed(images), expected)
    with pytest.raises(RecipeError, match=r"digitnet28.*\(1, 28, 28\).*\(1, 32"):
        features_for({**framed.info, "frame": 0}, "digitnet28")


def test_colourdigitnet8_answers_two_questions() -> None:
    """What it answers is read from the right outputs: a recoloured test digit keeps its digit and changes its colour.

    The answers are indices into the labels of both questions, so that a colour is never the index of a digit.
    """
    data = ColouredDigits().load()
    net = features_for(data.info)
    ids = torch.nonzero(data.is_test).flatten()
    assert net.groups == {"digit": DIGIT_WORDS, "colour": tuple(COLOURS)}
    assert accuracy(net, data) == pytest.approx(net.accuracy, abs=1e-3)
    answers, known = net.classify(data.batch(ids)["image"]), net.known(data)[ids]
    assert ((answers == known).double().mean(dim=0) >= 0.98).all()
    assert (answers[:, 0] < 10).all() and (answers[:, 1] >= 10).all()
    probabilities = net.probabilities(data.batch(ids[:9])["image"])
    assert torch.allclose(probabilities[:, :10].sum(1), torch.ones(9), atol=1e-5)
    assert torch.allclose(probabilities[:, 10:].sum(1), torch.ones(9), atol=1e-5)
    assert [net.labels[answer] for answer in known[0]] == [data.labels[ids[0]], *data.attributes[ids[0]]]
    assert net.detector["labels"].startswith("digit: zero, one") and len(net.detector["sha256"]) == 64


def test_wrong_grey_levels_would_be_noticed() -> None:
    mnist = Mnist(bits=3).load()
    assert accuracy(load_features("digitnet28"), mnist) < 0.5


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_net_is_small_and_says_where_it_comes_from(name: str) -> None:
    about = json.loads((ASSETS / name / "config.json").read_text())
    assert (ASSETS / name / "model.safetensors").stat().st_size < 500_000
    assert tuple(about["shape"]) == PACKAGED[name]
    words = [*DIGIT_WORDS, *COLOURS] if name.startswith("colour") else [str(digit) for digit in range(10)]
    assert about["labels"] == words
    assert {"accuracy", "accuracy_n", "trained_on", "data_fingerprint", "training"} <= about.keys()


def test_packaged_nets_were_trained_on_the_data_that_load(digits: Dataset) -> None:
    sources = {"digitnet8": digits, "digitnet28": Mnist().load(), "colourdigitnet8": ColouredDigits().load()}
    assert sources.keys() == PACKAGED.keys() == PACKAGED_NETS.keys()
    for name, data in sources.items():
        assert json.loads((ASSETS / name / "config.json").read_text())["data_fingerprint"] == data.fingerprint


def test_outputs_agree_and_do_not_depend_on_the_batch(digits: Dataset) -> None:
    net = features_for(digits.info)
    images = digits.batch(torch.arange(600))["image"]
    probabilities = net.probabilities(images)
    assert torch.equal(probabilities.argmax(1, keepdim=True), net.classify(images))
    assert torch.allclose(probabilities.sum(1), torch.ones(600))
    assert torch.allclose(net.embed(images)[500:], net.embed(images[500:]), atol=1e-5)
    assert net.embed(images).shape == (600, 32)
    assert net.embed(images[:0]).shape == (0, 32)
    assert not net.embed(images).requires_grad


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_features("digitnet8")
    assert torch.equal(torch.rand(2), expected)


def test_an_unknown_shape_names_the_nets_and_the_remedy() -> None:
    with pytest.raises(RecipeError, match=r"data of shape \(3, 64, 64\).*digitnet8.*--images FOLDER --output NET"):
        features_for({"shape": (3, 64, 64), "levels": 256})
    with pytest.raises(RecipeError, match=r"digitnet8.*\(1, 8, 8\).*\(1, 28, 28\)"):
        features_for({"shape": (1, 28, 28), "levels": 256}, "digitnet8")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"No feature net is at digitnet9.*digitnet9/config.json is missing"):
        load_features("digitnet9")
    for file in ("config.json", "model.safetensors"):
        folder = tmp_path / file
        shutil.copytree(ASSETS / "digitnet8", folder)
        (folder / file).write_bytes(b"{]")
        with pytest.raises(RecipeError, match="cannot be read"):
            load_features(str(folder))
        (folder / file).unlink()
        with pytest.raises(RecipeError, match=f"{file} is missing"):
            load_features(str(folder))


def test_a_few_epochs_come_near_the_packaged_net(digits: Dataset, tmp_path: Path) -> None:
    """5 of the 60 epochs; the same training gives the same net, another seed another one."""

    def trained(name: str, **settings: int) -> Features:
        with torch.enable_grad():
            return train(digits, name, tmp_path / name, Training(**settings), "digits")

    assert accuracy(trained("five", epochs=5), digits) >= 0.95
    first, again, other = trained("a", epochs=1), trained("b", epochs=1), trained("c", epochs=1, seed=1)
    assert torch.equal(first.network.head.weight, again.network.head.weight)
    assert not torch.equal(first.network.head.weight, other.network.head.weight)


def test_a_net_for_the_users_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two labels, black squares on white and white on black: a few epochs tell them apart."""
    for index in range(40):
        for label, paper, ink in (("day", 230, 30), ("night", 20, 220)):
            picture = Image.new("L", (16, 16), paper)
            picture.paste(ink, (index % 8, index // 8, index % 8 + 6, index // 8 + 6))
            (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "images" / label / f"{index:02}.png")
    net = tmp_path / "skies"
    arguments = ["--images", str(tmp_path / "images"), "--size", "16", "--channels", "1", "--output", str(net)]
    with torch.enable_grad():
        main([*arguments, "--epochs", "8"])
    assert "skies: accuracy" in capsys.readouterr().out
    features = features_for({"shape": (1, 16, 16), "levels": 256}, str(net))
    assert features.accuracy >= 0.9
    assert features.labels == ("day", "night")
    assert features.name == "skies"


def test_a_net_of_one_label_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "only").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "only/a.png")
    with pytest.raises(SystemExit) as stopped:
        main(["--images", str(tmp_path), "--output", str(tmp_path / "net")])
    assert stopped.value.code == 2
    assert "the data has 1 labels" in capsys.readouterr().err
    assert not (tmp_path / "net").exists()
