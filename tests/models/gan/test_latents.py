"""Latents of items: seeds, latents, images by inversion and by an encoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.models.gan.test_gan import small
from tests.toys.lively_gan import splits_of
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.concept import Concept
from unlearn.data.digits import Digits
from unlearn.data.identities import Identities, Identity
from unlearn.data.prompts import PromptList
from unlearn.evaluators.image.identity import IdentityMetrics
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import SEEDS, latents_of, latents_of_seeds, layered
from unlearn.objectives.gan.global_preservation import GlobalPreservation
from unlearn.objectives.gan.guide import Guide
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss
from unlearn.objectives.gan.sugar import Sugar

STREAM = Randomness(0, "inversion")
QUICK = Inversion(steps=4)


@pytest.mark.parametrize("kind", ["stylegan2", "dcgan"])
def test_seeds_are_mapped_and_latents_are_themselves(kind: str, tmp_path: Path) -> None:
    model = small(kind)
    width = len(model.w_avg)
    one, each = torch.randn(width), torch.randn(model.num_ws, width)
    save_file({"w": one}, tmp_path / "one.safetensors")
    save_file({"w": each}, tmp_path / "each.safetensors")
    people = [Identity(seed=7), *(Identity(latent=str(tmp_path / f"{name}.safetensors")) for name in ("one", "each"))]
    dataset = Identities(identities=people, strangers=2, test_strangers=0).load()
    with torch.no_grad():
        w = model.mapping(model.latent(torch.tensor([7]), Randomness(0, "identities")))
    first = latents_of(model, dataset, torch.tensor([0]), QUICK, STREAM)
    torch.testing.assert_close(first, w[:, None].expand(-1, model.num_ws, -1), rtol=0, atol=0)
    assert first.shape == (1, model.num_ws, width) and not first.requires_grad
    torch.testing.assert_close(
        latents_of(model, dataset, torch.tensor([1]), QUICK, STREAM)[0], one.expand(model.num_ws, -1)
    )
    torch.testing.assert_close(latents_of(model, dataset, torch.tensor([2]), QUICK, STREAM)[0], each)
    if kind == "dcgan":  # one layer, so that both files have one shape
        mixed = latents_of(model, dataset, torch.tensor([2, 0, 1, 3]), QUICK, STREAM)
        torch.testing.assert_close(mixed[1:3], torch.stack([w, one[None]]), rtol=0, atol=0)
    strangers = latents_of(model, dataset, torch.tensor([3, 4]), QUICK, STREAM)
    torch.testing.assert_close(strangers, latents_of_seeds(model, dataset.batch(torch.tensor([3, 4]))["seed"]))
    assert SEEDS.seed == 0 and not torch.equal(strangers[0], strangers[1])


def test_images_are_inverted_each_as_if_alone() -> None:
    model = small("stylegan2")
    digits = Digits().load()
    ids = torch.tensor([4, 9])
    both = latents_of(model, digits, ids, QUICK, STREAM)
    again = torch.cat([latents_of(model, digits, part, QUICK, STREAM) for part in ids.split(1)])
    torch.testing.assert_close(both, again, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        far = (model.synthesis(model.w_avg[None]) - model.pixels(digits.batch(ids))).square().mean()
        near = (model.synthesis(both) - model.pixels(digits.batch(ids))).square().mean()
    assert near < far
    # the packaged perceptual net takes part, unless its weight is 0
    blind = latents_of(model, digits, ids, replace(QUICK, features=0.0), STREAM)
    assert not torch.allclose(blind, both)
    wide = latents_of(model, digits, ids, replace(QUICK, space="w+"), STREAM)
    assert not torch.allclose(wide[:, 0], wide[:, 1]) and torch.equal(both[:, 0], both[:, 1])


class Encoder(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_encoder_by_path_takes_the_place_of_inversion(tmp_path: Path) -> None:
    model = small("stylegan2")
    torch.jit.script(Encoder()).save(str(tmp_path / "encoder.pt"))
    pixels = np.full((8, 8, 3), 255, dtype=np.uint8)
    pixels[0, 1] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dataset = model.read(Identities(identities=[Identity(image=str(tmp_path / "a.png"))]).load())
    found = latents_of(model, dataset, torch.tensor([0]), str(tmp_path / "encoder.pt"), STREAM)
    torch.testing.assert_close(found[0], torch.tensor([1.0, -1, 1, 1, 1]).expand(model.num_ws, -1))
    with pytest.raises(RecipeError, match="No encoder is at"):
        latents_of(model, dataset, torch.tensor([0]), str(tmp_path / "none.pt"), STREAM)


class Short(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(7, 7)


TERMS: list[Any] = [Guide, Sugar, GlobalPreservation]
PIXELS = {"likeness": PerceptualLoss(pixels=1.0, features=0.0, perceptual=0.0, identity=0.0)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_encoder_is_tried_whether_or_not_an_identity_is_an_image(tmp_path: Path) -> None:
    """By name, before any work, by every part of a recipe that takes one."""
    for name, net in {"good": Encoder(), "short": Short(), "fails": Fails()}.items():
        torch.jit.script(net).save(str(tmp_path / f"{name}.pt"))
    splits = splits_of(small("stylegan2"))
    for name, message in {
        "none": "No encoder is at",
        "short": r"to \(2, 3\); it must give latents \(2, 5\), or \(2, 4, 5\)",
        "fails": "is invalid",
    }.items():
        for part in TERMS:
            with pytest.raises(RecipeError, match=rf"{name}\.pt.*{message}|{message}.*{name}\.pt"):
                part(encoder=str(tmp_path / f"{name}.pt"), **PIXELS).check(splits, "forget")
        with pytest.raises(RecipeError, match=message):
            IdentityMetrics(encoder=str(tmp_path / f"{name}.pt")).check(splits)
    for part in TERMS:
        part(encoder=str(tmp_path / "good.pt"), **PIXELS).check(splits, "forget")
    with pytest.raises(RecipeError, match=r"short\.pt: A latent of shape \(1, 3\)"):
        latents_of(small("stylegan2"), Digits().load(), torch.tensor([0]), str(tmp_path / "short.pt"), STREAM)


def test_what_does_not_fit_is_refused() -> None:
    model = small("stylegan2")
    with pytest.raises(RecipeError, match="does not fit the model"):
        layered(model, torch.zeros(1, 3))
    with pytest.raises(RecipeError, match="does not fit the model"):
        layered(model, torch.zeros(1, 2, 5))
    with pytest.raises(RecipeError, match="neither images nor latents"):
        latents_of(model, PromptList(concepts=[Concept(name="three")]).load(), torch.tensor([0]), QUICK, STREAM)
