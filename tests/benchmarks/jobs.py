"""Shipped recipes cut short, timed as a run takes their steps, and what loops by hand share."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from unlearn.config.recipe import load
from unlearn.config.schema import Recipe
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import ReferenceModel
from unlearn.experiment.inputs import RunInputs, gather_inputs
from unlearn.training.build import recipe_module
from unlearn.training.dataloader import StepLoader
from unlearn.training.fit import fit
from unlearn.training.module import UnlearningModule

WARM, TIMED, ROUNDS = 3, 20, 3


class Side(NamedTuple):
    """Processor seconds a step, and before the first one."""

    step: float
    before: float = 0.0


class Job(NamedTuple):
    """A recipe cut short, and what it works on; ``steps`` is how many it takes in a run."""

    recipe: Recipe
    inputs: RunInputs
    steps: int

    @classmethod
    def of(cls, name: str, *settings: str) -> Job:
        """Read a recipe whose target ships."""
        given = [*settings, "pretrain.retrained=false", "gate=null", "trainer.tensorboard=false"]
        steps = load(name, given).optim.steps
        recipe = load(name, [*given, f"optim.steps={WARM + TIMED}"])
        dataset = recipe.model.read(recipe.data.load())
        return cls(recipe, gather_inputs(recipe, 0, None, dataset), steps)

    def module(self) -> UnlearningModule:
        """Return the module that a run steps."""
        target, teacher = self.inputs.target, self.inputs.teacher
        beside = ReferenceModel(teacher.copy) if teacher else None
        return recipe_module(self.recipe, target.copy(), self.inputs.splits, 0, ReferenceModel(target.copy), beside)

    def loader(self) -> StepLoader:
        """Return the batches of the steps."""
        optim, splits = self.recipe.optim, self.inputs.splits
        groups = {
            "forget": optim.forget_batch or optim.batch,
            **({"retain": optim.batch} if self.recipe.retain else {}),
        }
        return StepLoader(splits, groups, Randomness(0).child("order"))

    def engine(self) -> Side:
        """Time the job as a run does it, with its curves, checkpoints and checks."""
        module = self.module()
        ticks: list[float] = []
        before: list[float] = []
        prepare, step = module.on_fit_start, module.training_step

        def prepared() -> None:
            began = time.process_time()
            prepare()
            before.append(time.process_time() - began)

        def timed(*arguments: Any) -> None:
            ticks.append(time.process_time())
            step(*arguments)

        module.on_fit_start, module.training_step = prepared, timed  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as folder:
            fit(module, self.recipe.trainer, Path(folder), "bench")
        return Side(statistics.median(b - a for a, b in pairwise(ticks[WARM:])), before[0])


def in_turns(sides: Mapping[str, Callable[[], Side]]) -> dict[str, list[Side]]:
    """Return what each side takes in each round."""
    found: dict[str, list[Side]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            found[name].append(side())
    return found


def term_of(job: Job, group: str, kind: type[Any]) -> Any:
    """Return the recipe's term of a kind."""
    return next(term for term in getattr(job.recipe, group).values() if isinstance(term, kind))


def adam(optim: Optim, parameters: list[nn.Parameter]) -> torch.optim.Adam:
    """Return Adam as one writes it by hand, not fused."""
    betas = (optim.betas[0], optim.betas[1])
    return torch.optim.Adam(parameters, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay)


@torch.no_grad()
def nudge(model: nn.Module) -> None:
    """Move every weight a little, the same way each time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
