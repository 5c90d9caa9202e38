"""Tiny generators, identities given by seed, latent and image, and the few lines of an engine."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.toys.diffusion import first_step, gradients  # noqa: F401
from tests.toys.term_bench import TermBench
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Batch, Dataset, Split
from unlearn.data.digits import Digits
from unlearn.models.gan.config import StyleGAN2
from unlearn.models.gan.dcgan import DCGAN
from unlearn.models.gan.wrapper import LatentGenerator
from unlearn.models.scope import ByKind, Scope
from unlearn.objectives.base import Objective
from unlearn.objectives.surgery import Combination
from unlearn.training.build import build_module
from unlearn.training.module import UnlearningModule

INFO = {"shape": (1, 8, 8), "levels": 17}
SMALL = {"channel_base": 64, "channel_max": 8, "z_dim": 6, "w_dim": 5, "layers": 2}
SYNTHESIS = ByKind(["synthesis"])
OPTIM = Optim(steps=2, batch=4, lr=1e-3)


def small_gan(kind: str = "stylegan2", dtype: torch.dtype = torch.float64) -> LatentGenerator:
    """Return a generator of a few thousand weights, all away from what they begin with; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "dcgan":
            model = LatentGenerator(DCGAN(z_dim=6, width=2, channels=3))
        else:
            model = StyleGAN2(**SMALL).build(INFO, Randomness(0, "small"))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def write_script(network: nn.Module, path: Path) -> None:
    """Write a network as a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))


class Words(nn.Module):
    """Images and two texts in one space of four values, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
        self.said = nn.Parameter(torch.randn(2, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)

    @torch.jit.export
    def embed_images(self, images: Tensor) -> Tensor:
        return self.look(images)

    @torch.jit.export
    def embed_texts(self, words: list[str]) -> Tensor:
        return torch.stack([self.said[1 if word == "bright" else 0] for word in words])


def write_words(path: Path) -> None:
    """Write an untrained scorer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_script(Words(), path)


class Faces(Dataset):
    """Three latents as identities, then strangers by their seeds."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), levels: int = 17, latents: Tensor | None = None) -> None:
        self.latents = latents
        self.labels = ["a", "b", "c", *[""] * 9]
        self.attributes = [frozenset({"forget"} if label else {"retain"}) for label in self.labels]
        self.is_test = torch.tensor([False] * 9 + [True] * 3)
        self.fingerprint = hashlib.sha256(repr((shape, latents is None)).encode()).hexdigest()
        self.info = {"shape": shape, "levels": levels}

    def kind(self, item: int) -> str:
        return "w" if self.latents is not None and item < 3 else "seed"

    def batch(self, ids: Tensor) -> Batch:
        found = {"id": ids, "label": ids.clamp(max=3)}
        if self.latents is not None and bool((ids < 3).all()):
            return {**found, "w": self.latents[ids]}
        return {**found, "seed": ids + 100}


def face_splits(**settings: Any) -> dict[str, Split]:
    """Two identities, six strangers, three strangers for tests."""
    data = Faces(**settings)
    parts = {"forget": torch.arange(2), "retain": torch.arange(3, 9), "test": torch.arange(9, 12)}
    return {name: Split(name, data, ids) for name, ids in parts.items()}


@cache
def digit_splits() -> dict[str, Split]:
    """Threes are forgotten, all of them; a few other digits are retained."""
    data = Digits().load()
    threes = data.having(["3"]) & ~data.is_test
    others = torch.nonzero(~data.having(["3"]) & ~data.is_test).flatten()[::100]
    return {"forget": Split("forget", data, torch.nonzero(threes).flatten()), "retain": Split("retain", data, others)}


class Bench(TermBench):
    """A term, prepared on the target, and a small generator to be trained.

    Args:
        folder: for the target's values.
        objective: the term.
        kind: of the generator.
        split: which the term reads.
        splits: the data by split name.
        scope: which parameters are trained.
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        kind: str = "stylegan2",
        split: str = "forget",
        splits: Mapping[str, Split] | None = None,
        scope: Scope = SYNTHESIS,
    ) -> None:
        model = small_gan(kind)
        chosen = set(scope.select(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        super().__init__(
            folder, objective, model, small_gan(kind), splits or face_splits(shape=model.image_shape), split
        )

    def moved(self, size: float = 0.05) -> Bench:
        """Move every weight that is trained."""
        with torch.no_grad():
            for index, parameter in enumerate(self.model.parameters()):
                if parameter.requires_grad:
                    generator = torch.Generator().manual_seed(index)
                    parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        return self


def small_job(
    groups: Mapping[str, Mapping[str, Objective]],
    folder: Path,
    kind: str = "stylegan2",
    scope: Scope = SYNTHESIS,
    optim: Optim = OPTIM,
    splits: Mapping[str, Split] | None = None,
    combine: Combination | None = None,
) -> UnlearningModule:
    """Return the module of a run, networks beside the model included; ``on_fit_start`` prepares its terms."""
    model, target = small_gan(kind), small_gan(kind)
    module = build_module(
        model,
        splits or face_splits(shape=model.image_shape),
        0,
        **groups,
        combine=combine,
        scope=scope,
        optim=optim,
        target=ReferenceModel(lambda: target),
        log_every=1,
    )
    module.cache_reference_in(folder)
    return module


def rounded(difference: Tensor) -> Tensor:
    """Return absolute values that are round within a grey level g: d^2 / 2g there, d - g / 2 beyond."""
    size, level = difference.abs(), 2 / 255
    return torch.where(size < level, size**2 / (2 * level), size - level / 2)
