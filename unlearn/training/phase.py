"""A phase: one network that is trained on its own losses; a method with auxiliary networks has several phases."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from unlearn.core.optim import Optim
from unlearn.objectives.base import Objective
from unlearn.objectives.surgery import Combination, WeightedSum


@dataclass(eq=False)  # by identity: two phases are never compared by their tensors
class Phase:
    """Which parameters are trained on which losses.

    The word is the field's: StyleGAN2-ADA's training loop steps through phases, each with a name, a module, an
    optimizer and an interval.

    Args:
        parameters: the trained parameters, by name.
        groups: the terms by group, ``forget`` and ``retain``; a group reads the split of its name.
        optim: optimizer settings.
        combine: how the groups' gradients become one.
        name: for the log.
        every: interval in steps.
        primary: whether the run counts its steps.
        network: the trained network, unless it is the model; the terms' contexts hold it.
        owners: terms of the model, ``group/name``, whose contexts hold the network too.
        warmup: steps that it takes before the first primary step.
        rests: whether it is frozen after those steps; see AuxiliaryNetwork.
        file: where the network is written after the run; see AuxiliaryNetwork.
    """

    parameters: dict[str, nn.Parameter]
    groups: dict[str, dict[str, Objective[Any]]]
    optim: Optim
    combine: Combination = field(default_factory=WeightedSum)
    name: str = "main"
    every: int = 1
    primary: bool = True
    network: nn.Module | None = None
    owners: tuple[str, ...] = ()
    warmup: int = 0
    rests: bool = False
    file: str = ""

    @property
    def first(self) -> int:
        """The first step of this phase; primary steps are counted from 0."""
        return -(self.warmup // self.every) * self.every

    def is_due(self, step: int) -> bool:
        """Return whether the phase takes a step at ``step``."""
        return step >= self.first and step % self.every == 0 and not (self.rests and step >= 0)

    def terms(self) -> Iterable[tuple[str, str, Objective[Any]]]:
        """Yield (group, name, objective)."""
        for group, terms in self.groups.items():
            for name, objective in terms.items():
                yield group, name, objective
