"""Small generators whose changes are known, and a net that embeds an image as its pixels."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.gan.test_gan import small
from tests.toys.scripted import evaluation_of
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.identities import Identities, Identity
from unlearn.data.splits import make_splits
from unlearn.evaluators.base import Evaluation
from unlearn.models.gan.latents import latents_of_seeds
from unlearn.models.gan.wrapper import LatentGenerator

SEEDS = (7, 8)


class Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def pixel_net(folder: Path) -> str:
    """Write the net that embeds an image as its pixels, and return its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which published nets still are
        torch.jit.script(Pixels()).save(str(folder / "pixels.pt"))
    return str(folder / "pixels.pt")


def lively(kind: str = "stylegan2") -> LatentGenerator:
    """A generator whose images differ from latent to latent."""
    model = small(kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("affine.weight") or ".torgb." in name or ".main." in name:
                parameter += (0.3 if kind == "stylegan2" else 0.02) * torch.randn_like(parameter)
    return model


class Moved(nn.Module):
    """A generator that draws latents w (B, num_ws, w_dim) as another draws ``move`` of them."""

    def __init__(self, generator: nn.Module, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.move = generator, move

    def synthesis(self, ws: Tensor, noise: Any = None) -> Any:
        return self.inner.synthesis(self.move(ws), noise)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)


def moved(model: LatentGenerator, move: Callable[[Tensor], Tensor]) -> LatentGenerator:
    """Return a model that draws other latents; the given one stays as it is."""
    found = deepcopy(model)
    found.generator = Moved(found.generator, move)  # type: ignore[assignment]
    return found


def sent_away(model: LatentGenerator, reach: float, length: float = 2.0) -> LatentGenerator:
    """Return a model that draws the identities, and what lies within ``reach``, on the other side of the mean."""
    homes = latents_of_seeds(model, torch.tensor(SEEDS))

    def move(ws: Tensor) -> Tensor:
        near = torch.cdist(ws.flatten(1), homes.flatten(1)).amin(dim=1) <= reach
        return torch.where(near[:, None, None], ws - length * (ws - model.w_avg), ws)

    return moved(model, move)


def splits_of(model: LatentGenerator, **given: Any) -> dict[str, Split]:
    """Return the splits of two seeds and a few strangers, as the model reads them."""
    source = Identities(
        **{"identities": [Identity(seed=seed) for seed in SEEDS], "strangers": 4, "test_strangers": 16} | given
    )
    dataset = model.read(source.load())
    return {
        name: replace(split, dataset=dataset) for name, split in make_splits(dataset, source, Randomness(0)).items()
    }


def of(target: LatentGenerator, seed: int = 0, state: Any = None, **models: LatentGenerator) -> Evaluation:
    """Return an evaluation of a target and others."""
    subjects = {"target": target, **models}
    return evaluation_of(subjects, splits_of(target), seed=seed, **({"state": state} if state else {}))
