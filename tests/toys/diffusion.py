"""Tiny diffusion models on the digits, class-conditional and text-conditional, and the few lines of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from unlearn.core.distributed import map_ids
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_cache import ReferenceCache
from unlearn.core.reference_model import AdapterDisabledReference, ReferenceModel
from unlearn.data.base import Selection, Source, Split
from unlearn.data.coloured_digits import ColouredDigits
from unlearn.data.concept import Concept
from unlearn.data.digits import Digits
from unlearn.models.diffusion.config import DiffusionConfig, DiT, TextUNet, UNet
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.scope import All, Scope
from unlearn.objectives.base import Context, Objective, Values
from unlearn.training.auxiliary_networks import auxiliary_networks
from unlearn.training.dataloader import StepBatches, StepLoader
from unlearn.training.module import UnlearningModule
from unlearn.training.phase import Phase, StepLosses

ConditionEncoder = Literal["class", "text", "dit"]

CONFIGS: dict[ConditionEncoder, DiffusionConfig] = {
    "class": UNet(channels=(8, 16), head_dim=8),
    "text": TextUNet(channels=(8, 16), head_dim=8, text_width=16, text_layers=2),
    "dit": DiT(width=16, depth=2, head_dim=8),
}
"""Of some ten thousand weights each."""


def source(told: ConditionEncoder) -> Source:
    """Threes are forgotten, and eights take their place."""
    if told == "text":
        concepts = [Concept(name="three", anchor="eight", templates=["a red {}"])]
        return ColouredDigits(forget=Selection(label=["three"]), concepts=concepts)
    return Digits(forget=Selection(label=["3"]), concepts=[Concept(name="3", anchor="8")])


@cache
def small_splits(told: ConditionEncoder = "text") -> dict[str, Split]:
    """Eight forget items, twelve retain items of all other digits, four test items."""
    dataset = CONFIGS[told].read(source(told).load())
    forgotten = dataset.having(["three" if told == "text" else "3"]) & ~dataset.is_test
    kept = torch.nonzero(~forgotten & ~dataset.is_test).flatten()
    ids = {
        "forget": torch.nonzero(forgotten).flatten()[:8],
        "retain": kept[:: len(kept) // 12][:12],
        "test": torch.nonzero(dataset.is_test).flatten()[:4],
    }
    return {name: Split(name, dataset, chosen) for name, chosen in ids.items()}


def small_model(told: ConditionEncoder = "text", seed: int = 0, **changed: Any) -> Diffusion:
    """Return a model with random weights in double precision, the same for the same seed."""
    config = type(CONFIGS[told])(**{**vars(CONFIGS[told]), **changed})
    model = config.build(small_splits(told)["retain"].dataset.info, Randomness(seed, "small"))
    return model.double()  # type: ignore[return-value]


def moved(model: Diffusion, size: float = 0.05) -> Diffusion:
    """Move every weight, in place."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


class Bench:
    """A term, prepared on the target, and a model that moves.

    Args:
        folder: for the target's values.
        objective: prepared at once, unless ``prepare`` is false.
        told: which model.
        split: which the term reads.
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        told: ConditionEncoder = "text",
        split: str = "forget",
        prepare: bool = True,
    ) -> None:
        self.objective, self.split = objective, split
        self.model, self.target = small_model(told), small_model(told)
        self.splits: Mapping[str, Split] = small_splits(told)
        self.state: dict[str, Any] = {}
        self.reference_cache = ReferenceCache(folder)
        self.reference = ReferenceModel(lambda: self.target)
        if prepare:
            objective.prepare(self.model, self.context())

    def context(self, step: int = 0, **changed: Any) -> Context:
        given: dict[str, Any] = {
            "step": step,
            "randomness": Randomness(0, "bench", step),
            "splits": self.splits,
            "state": self.state,
            "reference": self.reference,
            "map_ids": map_ids,
            "device": torch.device("cpu"),
            "remembered": self.reference_cache,
            "split": self.split,
        }
        return Context(**given | changed)

    def batch(self, rows: Any = slice(None)) -> dict[str, torch.Tensor]:
        return self.splits[self.split].batch(self.splits[self.split].ids[rows])

    def values(self, rows: Any = slice(None), step: int = 0) -> Values:
        return self.objective(self.model, self.batch(rows), self.context(step))


def small_job(
    groups: Mapping[str, Mapping[str, Objective]],
    folder: Path,
    told: ConditionEncoder = "class",
    scope: Scope | None = None,
    teacher: Diffusion | None = None,
    optim: Optim | None = None,
) -> UnlearningModule:
    """Return the module of a run, networks beside the model included; ``on_fit_start`` prepares its terms.

    Args:
        groups: the terms.
        folder: for the target's values.
        told: which model.
        scope: what moves, by default everything.
        teacher: that the target was distilled from, by default none.
        optim: by default two steps of Adam.
    """
    model, target, chosen = small_model(told), small_model(told), scope or All()
    for terms in groups.values():
        for term in terms.values():
            term.attach(model)
    chosen.attach(model, Randomness(0, "scope"))
    names = set(chosen.select(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    moving = {name: parameter for name, parameter in model.named_parameters() if name in names}
    phase = Phase(moving, {group: dict(terms) for group, terms in groups.items()}, optim or OPTIM)
    reference = (
        AdapterDisabledReference(model, lambda: chosen.off(model))
        if chosen.is_adapter
        else ReferenceModel(lambda: target)
    )
    distilled_from = ReferenceModel(lambda: teacher) if teacher is not None else None
    beside = auxiliary_networks(phase, model, distilled_from or reference, Randomness(0, "companion"))
    splits = small_splits(told)
    module = UnlearningModule(model, [*beside, phase], splits, 0, reference, 1, distilled_from)
    module.reference_cache = ReferenceCache(folder)
    return module


OPTIM = Optim(steps=2, batch=4, lr=1e-3)


def first_step(module: UnlearningModule) -> StepBatches:
    """Return the batches of the first step."""
    sizes = {group: module.primary.optim.batch for group in module.primary.groups}
    return StepLoader(module.splits, sizes, module.stream.child("order"))[0]


def gradients(module: UnlearningModule, index: int, batches: StepBatches) -> dict[str, torch.Tensor]:
    """Return the gradient of one phase at the step that the module stands at."""
    phase = module.phases[index]
    found = StepLosses(phase, module.model, batches, module._context).gradient({}, log=False)
    return dict(zip(phase.parameters, [gradient.clone() for gradient in found], strict=True))
