"""Nets that tell images apart: against the originals, against formulas, and what they make of faces."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.feature_extractors.classifiers import fresh, load_features, save_features
from unlearn.models.feature_extractors.embedders import Embedder, attribute_net, identity_net, perceptual_net
from unlearn.models.feature_extractors.networks import Stages
from unlearn.models.gan.config import FaceDCGAN

FACE, DIGIT = (3, 64, 64), (1, 8, 8)
WITH_FACES = pytest.mark.skipif(
    importlib.util.find_spec("gan_face_generate") is None, reason="the package of faces is not installed"
)


def ramp(side: int) -> Tensor:
    """The image that the originals were asked about: 7919 i mod 256, counted by rows, columns and colours."""
    return ((torch.arange(side * side * 3) * 7919) % 256).float().view(side, side, 3).permute(2, 0, 1)[None]


def test_dlib_is_the_original() -> None:
    """The first values of face-api.js 1.7.15's own network, TensorFlow.js on a CPU, for the same image and weights."""
    net = identity_net("dlib_face", FACE)
    original = [-0.0191782, 0.1199259, 0.0325330, -0.0853967, -0.1100869, -0.0127842, -0.0874802, 0.0371502]
    found = net(ramp(150) / 127.5 - 1)
    assert found.shape == (1, 128) and net.metric == "l2"
    torch.testing.assert_close(found[0, :8], torch.tensor(original), atol=1e-6, rtol=0)
    assert not torch.allclose(net(ramp(150).flip(1) / 127.5 - 1)[0, :8], torch.tensor(original), atol=1e-3)


def test_the_mobile_net_is_the_original() -> None:
    """The same of @vladmandic/human 3.3.6's faceres: embedding, gender and age."""
    net = identity_net("mobile_face", FACE)
    found = net(ramp(224).flip(1) / 127.5 - 1)  # the original reads blue, green, red
    assert found.shape == (1, 1024) and net.metric == "cosine"
    assert found[0, :7].eq(0).all()
    torch.testing.assert_close(found[0, 7].item(), 0.0038964, atol=1e-6, rtol=0)
    torch.testing.assert_close(net.network.male(found).item(), 0.6349891, atol=1e-6, rtol=0)
    age = net.network.ages(found) @ torch.arange(1.0, 101.0)
    torch.testing.assert_close(age.item(), 38.8654, atol=1e-3, rtol=0)


def test_the_digit_net_by_its_stages_is_the_digit_net() -> None:
    net, whole = identity_net(None, DIGIT), load_features("digitnet8")
    images = torch.rand(3, *DIGIT) * 2 - 1
    torch.testing.assert_close(net(images), whole.network.embed(images), rtol=0, atol=0)
    assert (net.name, net.sha256) == ("digitnet8", whole.sha256) and isinstance(net.network, Stages)
    assert [tuple(layer.shape[1:]) for layer in net.network.layers(images)] == [(24, 8, 8), (48, 4, 4)]


def test_distances_are_the_formulas() -> None:
    """3-4-5: the Euclidean distance is 5; the cosine of (1, 0) and (1, 1) is 1 / sqrt(2)."""
    a, b = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert Embedder("x", "", None, "l2").distance(a, b).tolist() == [5, 1]
    torch.testing.assert_close(Embedder("x", "", None, "cosine").distance(a, b)[1], torch.tensor(1 - 0.5**0.5))
    same = a.clone().requires_grad_()
    Embedder("x", "", None, "l2").distance(same, a).sum().backward()
    assert same.grad is not None and same.grad.eq(0).all()  # not nan


def test_the_perceptual_distance_is_lpips_with_equal_weights() -> None:
    """Brute force over positions and layers; the plain squared difference of features gives something else."""
    net = perceptual_net(None, DIGIT)
    a, b = torch.rand(2, 2, *DIGIT).unbind(0)
    found = net(a, b)
    for item in range(2):
        means = []
        for x, y in zip(net.network.layers(a), net.network.layers(b), strict=True):
            sums = [
                (x[item, :, i, j] / x[item, :, i, j].norm() - y[item, :, i, j] / y[item, :, i, j].norm()).square().sum()
                for i in range(x.shape[2])
                for j in range(x.shape[3])
            ]
            means.append(torch.stack(sums).mean())
        torch.testing.assert_close(found[item], torch.stack(means).mean())
    plain = sum((x - y).square().mean() for x, y in zip(net.network.layers(a), net.network.layers(b), strict=True))
    assert not torch.isclose(found.mean(), torch.as_tensor(plain))
    torch.testing.assert_close(net.between(net.features(a), net.features(b)), found)
    assert net(a, a).tolist() == [0, 0] and net.name == "perceptual_digitnet8"


@pytest.mark.parametrize(("name", "shape"), [("dlib_face", (3, 32, 32)), ("digitnet8", DIGIT)])
def test_gradients_reach_the_images_and_not_the_net(name: str, shape: tuple[int, ...]) -> None:
    images = (torch.rand(2, *shape) * 2 - 1).requires_grad_()
    identity, perceptual = identity_net(name, shape), perceptual_net(name, shape)
    other = identity(-images.detach())
    (identity.distance(identity(images), other) + perceptual(images, -images.detach())).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.norm() > 0
    assert not any(parameter.requires_grad for parameter in identity.network.parameters())
    assert identity(images.double()).dtype == torch.float32


def test_grey_and_large_faces_are_brought_to_size() -> None:
    net = identity_net(None, (1, 64, 64))
    assert net.name == "dlib_face"
    grey = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(net(grey), net(grey.expand(-1, 3, -1, -1)))
    large = F.interpolate(grey, scale_factor=4, mode="bilinear")
    assert net.distance(net(large), net(grey)) < 0.3 * net.distance(net(grey), net(-grey))


@WITH_FACES
def test_on_faces_distance_grows_with_the_latent_and_strangers_are_far() -> None:
    config = FaceDCGAN()
    model = config.load(config.fetch("face_dcgan"))
    z = model.latent(torch.arange(6), Randomness(0, "test"))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = model.synthesis(z)
        near = {size: model.synthesis(z + size * noise) for size in (0.1, 0.5)}
        for name in ("dlib_face", "mobile_face"):
            net = identity_net(name, FACE)
            own = net(images)
            apart = net.distance(own, own.roll(1, 0)).mean()
            little, more = (net.distance(own, net(near[size])).mean() for size in (0.1, 0.5))
            assert 0 < little < more < apart and little < 0.35 * apart, name


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Gap(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)[:, None, None, None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nets_of_ones_own_are_torchscript_files(tmp_path: Path) -> None:
    """The file is read again where it has changed, and takes any shape."""
    torch.jit.script(Flat()).save(str(tmp_path / "my-arcface.pt"))
    torch.jit.script(Gap()).save(str(tmp_path / "lpips.pt"))
    images = torch.rand(2, 1, 4, 4)
    net = identity_net(str(tmp_path / "my-arcface.pt"), (1, 4, 4))
    assert (net.name, net.metric, len(net.sha256)) == ("my_arcface", "cosine", 64)
    torch.testing.assert_close(net(images), images.flatten(1))
    gap = perceptual_net(str(tmp_path / "lpips.pt"), (1, 4, 4))
    assert gap.name == "lpips"
    torch.testing.assert_close(gap(images, images + 0.5), torch.full((2,), 0.5))
    with pytest.raises(RecipeError, match="no such file"):
        identity_net(str(tmp_path / "none.pt"), (1, 4, 4))
    (tmp_path / "broken.pt").write_text("no script")
    with pytest.raises(RecipeError, match="no TorchScript file"):
        perceptual_net(str(tmp_path / "broken.pt"), (1, 4, 4))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes images of shape \(1, 16, 16\)"):
        identity_net(None, (1, 16, 16))
    with pytest.raises(RecipeError, match="32 x 32 pixels or more"):
        identity_net("dlib_face", (3, 16, 16))
    with pytest.raises(RecipeError, match="takes images of shape"):
        perceptual_net("digitnet28", DIGIT)
    small = load_features("digitnet8")
    save_features(small, tmp_path / "mine", {})
    assert identity_net(str(tmp_path / "mine"), DIGIT).name == "mine"
    assert fresh(DIGIT, (4,), 3, 2).embed(torch.rand(1, *DIGIT)).shape == (1, 3)


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(7, 7)


class Square(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:2, :2, :2, :2]


class Counts(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).argmax(dim=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nets_of_ones_own_are_tried_before_any_work(tmp_path: Path) -> None:
    """On two blank images: one that fails, of another shape, of whole numbers, or that asks for one batch of two."""
    for name, net in {"fails": Fails(), "square": Square(), "counts": Counts(), "flat": Flat(), "gap": Gap()}.items():
        torch.jit.script(net).save(str(tmp_path / f"{name}.pt"))
    shape = (4, 4, 4)
    tries = [
        (identity_net, "fails", "shape '\\[7, 7\\]' is invalid"),
        (identity_net, "square", r"gives? one row per image"),
        (identity_net, "counts", "no real numbers"),
        (perceptual_net, "fails", "2 batches"),
        (perceptual_net, "flat", "fails on 2 batches"),
        (attribute_net, "fails", "shape '\\[7, 7\\]' is invalid"),
        (attribute_net, "square", r"logits \(2, K\)"),
    ]
    for build, name, message in tries:
        with pytest.raises(RecipeError, match=message) as caught:
            build(str(tmp_path / f"{name}.pt"), shape)
        assert f"{name}.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert perceptual_net(str(tmp_path / "gap.pt"), shape)(torch.zeros(3, *shape), torch.ones(3, *shape)).shape == (3,)
    assert attribute_net(str(tmp_path / "flat.pt"), shape).labels == tuple(str(number) for number in range(64))


@pytest.mark.parametrize("build", [identity_net, perceptual_net, attribute_net])
def test_an_unknown_name_gets_near_ones_and_all_packaged_nets(build: Any) -> None:
    with pytest.raises(RecipeError, match=r"no \w+ net 'dlibface'.*Did you mean: dlib_face") as caught:
        build("dlibface", FACE)
    assert all(name in str(caught.value) for name in ("mobile_face", "digitnet28", "colourdigitnet8"))
