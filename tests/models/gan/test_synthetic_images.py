"""Images that one generator draws of identities: what they are, their size, and that they are drawn once."""

from pathlib import Path

import pytest
import torch

from tests.models.gan.test_gan import small
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.identities import Identities, Identity
from unlearn.models.gan.config import StyleGAN2
from unlearn.models.gan.latents import latents_of_seeds
from unlearn.models.gan.synthetic_images import AT_ONCE, DrawnImages
from unlearn.models.gan.wrapper import LatentGenerator

SOURCE = Identities(identities=[Identity(seed=7, name="Ann"), Identity(seed=9)], strangers=3, test_strangers=1)


@pytest.fixture
def generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small DCGAN of 64 pixels; the cache is empty."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "dcgan"
    folder.mkdir()
    small("dcgan").save_pretrained(folder)
    return folder


def test_images_are_the_generators_own(generator: Path) -> None:
    model, data = LatentGenerator.from_pretrained(generator), SOURCE.load()
    found = DrawnImages(data, generator, None)
    seeds = data.batch(torch.arange(6))["seed"]
    wanted = model.images(model.synthesis(latents_of_seeds(model, seeds)))
    off = (found.batch(torch.arange(6))["image"].int() - wanted.int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01  # rounding, where 64 are drawn at once
    assert found.labels == data.labels and found.attributes == data.attributes
    assert torch.equal(found.is_test, data.is_test) and found.info == {"shape": (3, 64, 64), "levels": 256}


def test_smaller_images_are_means_of_pixels(generator: Path) -> None:
    model, data = LatentGenerator.from_pretrained(generator), SOURCE.load()
    found = DrawnImages(data, generator, 16)
    large = model.synthesis(latents_of_seeds(model, data.batch(torch.arange(6))["seed"]))
    wanted = large.unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean(dim=(3, 5))
    assert (found.batch(torch.arange(6))["image"].int() - model.images(wanted).int()).abs().max() <= 1
    with pytest.raises(RecipeError, match=r"model\.size is 24.*64"):
        DrawnImages(data, generator, 24)


def test_they_are_drawn_once(generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SOURCE.load()
    first = DrawnImages(data, generator, 8)
    images = first.batch(torch.arange(6))["image"]
    monkeypatch.setattr(LatentGenerator, "synthesis", None)
    again = DrawnImages(data, generator, 8)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.batch(torch.arange(6))["image"], images)
    with pytest.raises(TypeError):  # other people are drawn anew
        DrawnImages(Identities(identities=[Identity(seed=8)]).load(), generator, 8).batch(torch.tensor([0]))


def test_what_is_not_asked_for_is_not_drawn(generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are drawn one by one, and an image is the same whatever was asked for before."""
    people = Identities(identities=[Identity(seed=7)], strangers=2 * AT_ONCE).load()
    drawn: list[int] = []
    synthesis = LatentGenerator.synthesis

    def counted(self: LatentGenerator, w: torch.Tensor) -> torch.Tensor:
        drawn.append(len(w))
        return synthesis(self, w)

    monkeypatch.setattr(LatentGenerator, "synthesis", counted)
    few, whole = DrawnImages(people, generator, 8), DrawnImages(people, generator, 8)
    last = torch.tensor([len(people) - 1])
    image = few.batch(last)["image"]
    assert sum(drawn) == len(people) % AT_ONCE and not list(generator.parent.glob("cache/**/*.safetensors"))
    assert torch.equal(whole.batch(torch.arange(len(people)))["image"][-1:], image)
    few.batch(torch.arange(len(people)))
    assert sum(drawn) == 2 * len(people)
    assert torch.equal(DrawnImages(people, generator, 8).batch(last)["image"], image)
    assert sum(drawn) == 2 * len(people)


def test_a_stylegan2_reads_identities_as_images(generator: Path) -> None:
    config = StyleGAN2(images_of=str(generator), size=8)
    found = config.read(SOURCE.load())
    assert found.info["shape"] == (3, 8, 8) and "image" in found.batch(torch.tensor([0]))
    config.build(found.info, Randomness(0)).check_fits(found.info)
    with pytest.raises(ValueError, match="name it by images_of"):
        StyleGAN2(size=8)
