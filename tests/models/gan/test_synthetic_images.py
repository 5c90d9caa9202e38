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
from unlearn.models.gan.synthetic_images import drawn
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
    found = drawn(data, generator, None)
    seeds = data.batch(torch.arange(6))["seed"]
    wanted = model.images(model.synthesis(latents_of_seeds(model, seeds)))
    off = (found.images.int() - wanted.int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01  # rounding, where 64 are drawn at once
    assert found.labels == data.labels and found.attributes == data.attributes
    assert torch.equal(found.is_test, data.is_test) and found.info == {"shape": (3, 64, 64), "levels": 256}


def test_smaller_images_are_means_of_pixels(generator: Path) -> None:
    model, data = LatentGenerator.from_pretrained(generator), SOURCE.load()
    found = drawn(data, generator, 16)
    large = model.synthesis(latents_of_seeds(model, data.batch(torch.arange(6))["seed"]))
    wanted = large.unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean(dim=(3, 5))
    assert (found.images.int() - model.images(wanted).int()).abs().max() <= 1
    with pytest.raises(RecipeError, match=r"model\.size is 24.*64"):
        drawn(data, generator, 24)


def test_they_are_drawn_once(generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SOURCE.load()
    first = drawn(data, generator, 8)
    monkeypatch.setattr(LatentGenerator, "synthesis", None)
    again = drawn(data, generator, 8)
    assert again.fingerprint == first.fingerprint
    with pytest.raises(TypeError):  # other people are drawn anew
        drawn(Identities(identities=[Identity(seed=8)]).load(), generator, 8)


def test_a_stylegan2_reads_identities_as_images(generator: Path) -> None:
    config = StyleGAN2(images_of=str(generator), size=8)
    found = config.read(SOURCE.load())
    assert found.info["shape"] == (3, 8, 8) and "image" in found.batch(torch.tensor([0]))
    config.build(found.info, Randomness(0)).check_fits(found.info)
    with pytest.raises(ValueError, match="name it by images_of"):
        StyleGAN2(size=8)
