"""Tiny diffusion models on the digits, class-conditional and text-conditional, and the few lines of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from tests.toys.term_bench import TermBench
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Selection, Source, Split
from unlearn.data.coloured_digits import ColouredDigits
from unlearn.data.concept import Concept
from unlearn.data.digits import Digits
from unlearn.models.diffusion.config import DiffusionConfig, DiT, TextUNet, UNet
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.scope import Scope
from unlearn.objectives.base import Objective
from unlearn.training.build import build_module
from unlearn.training.dataloader import StepBatches, StepLoader
from unlearn.training.losses import StepLosses
from unlearn.training.module import UnlearningModule

Conditioning = Literal["class", "text", "dit"]

CONFIGS: dict[Conditioning, DiffusionConfig] = {
    "class": UNet(channels=(8, 16), head_dim=8),
    "text": TextUNet(channels=(8, 16), head_dim=8, text_width=16, text_layers=2),
    "dit": DiT(width=16, depth=2, head_dim=8),
}
"""Of some ten thousand weights each."""


def source(conditioning: Conditioning) -> Source:
    """Threes are forgotten, and eights take their place."""
    if conditioning == "text":
        concepts = [Concept(name="three", anchor="eight", templates=["a red {}"])]
        return ColouredDigits(forget=Selection(label=["three"]), concepts=concepts)
    return Digits(forget=Selection(label=["3"]), concepts=[Concept(name="3", anchor="8")])


@cache
def small_splits(conditioning: Conditioning = "text") -> dict[str, Split]:
    """Eight forget items, twelve retain items of all other digits, four test items."""
    dataset = CONFIGS[conditioning].read(source(conditioning).load())
    forgotten = dataset.having(["three" if conditioning == "text" else "3"]) & ~dataset.is_test
    kept = torch.nonzero(~forgotten & ~dataset.is_test).flatten()
    ids = {
        "forget": torch.nonzero(forgotten).flatten()[:8],
        "retain": kept[:: len(kept) // 12][:12],
        "test": torch.nonzero(dataset.is_test).flatten()[:4],
    }
    return {name: Split(name, dataset, chosen) for name, chosen in ids.items()}


def small_model(conditioning: Conditioning = "text", seed: int = 0, **changed: Any) -> Diffusion:
    """Return a model with random weights in double precision, the same for the same seed."""
    config = type(CONFIGS[conditioning])(**{**vars(CONFIGS[conditioning]), **changed})
    model = config.build(small_splits(conditioning)["retain"].dataset.info, Randomness(seed, "small"))
    return model.double()  # type: ignore[return-value]


def moved(model: Diffusion, size: float = 0.05) -> Diffusion:
    """Move every weight, in place."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def some_states(model: Diffusion, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x_t, (n, C, H, W), and t, (n,)."""
    noise = Randomness(0, "test").normal(torch.arange(n), model.latent_shape, torch.float64)
    return noise, torch.tensor([0, 30, 400, 999])[:n]


def some_items(conditioning: Conditioning, n: int = 4, split: str = "forget") -> dict[str, torch.Tensor]:
    """Return the first items of a split."""
    return small_splits(conditioning)[split].batch(small_splits(conditioning)[split].ids[:n])


class Bench(TermBench):
    """A term, prepared on the target unless ``prepare`` is false, and a small model to be trained."""

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        conditioning: Conditioning = "text",
        split: str = "forget",
        prepare: bool = True,
    ) -> None:
        super().__init__(
            folder,
            objective,
            small_model(conditioning),
            small_model(conditioning),
            small_splits(conditioning),
            split,
            prepare,
        )


def small_job(
    groups: Mapping[str, Mapping[str, Objective]],
    folder: Path,
    conditioning: Conditioning = "class",
    scope: Scope | None = None,
    teacher: Diffusion | None = None,
    optim: Optim | None = None,
) -> UnlearningModule:
    """Return the module of a run, networks beside the model included; ``on_fit_start`` prepares its terms.

    Args:
        groups: the terms.
        folder: for the target's values.
        conditioning: which model.
        scope: what is trained, by default everything.
        teacher: that the target was distilled from, by default none.
        optim: by default two steps of Adam.
    """
    model, target = small_model(conditioning), small_model(conditioning)
    module = build_module(
        model,
        small_splits(conditioning),
        0,
        **groups,
        scope=scope,
        optim=optim or OPTIM,
        target=ReferenceModel(lambda: target),
        distilled_from=ReferenceModel(lambda: teacher) if teacher is not None else None,
        log_every=1,
    )
    module.cache_reference_in(folder)
    return module


OPTIM = Optim(steps=2, batch=4, lr=1e-3)


def first_step(module: UnlearningModule) -> StepBatches:
    """Return the batches of the first step."""
    sizes = {group: module.primary.optim.batch for group in module.primary.groups}
    return StepLoader(module.common.splits, sizes, module.common.randomness.child("order"))[0]


def gradients(module: UnlearningModule, index: int, batches: StepBatches) -> dict[str, torch.Tensor]:
    """Return the gradient of one phase at the step that the module stands at."""
    phase = module.phases[index]
    found = StepLosses(phase, module.model, batches, module._context).gradient({}, log=False)
    return dict(zip(phase.parameters, [gradient.clone() for gradient in found], strict=True))
