"""Task vector: away from where more training on the forget data leads."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch

from unlearn.core.optim import Optim
from unlearn.core.validation import NonNegativeFloat
from unlearn.data.base import Split
from unlearn.models.capabilities import Trains
from unlearn.objectives.edits.base import Edit, Train


@dataclass(frozen=True)
class TaskVector(Edit[Trains]):
    """theta = theta_t - alpha (theta_f - theta_t), with theta_f the target trained further on the forget data.

    All weights change; buffers stay the target's. Computed in double precision, so that alpha = 0 is the target itself.

    Args:
        alpha: how far to go the other way, >= 0, in lengths of the task vector.
        optim: how the copy is trained on the forget data.

    Reference:
        Ilharco et al., Editing Models with Task Arithmetic, 2023, section 3 (forgetting via negation).
        arXiv:2212.04089
    """

    alpha: NonNegativeFloat = 1.0
    optim: Optim = field(default_factory=Optim)

    def __call__(self, target: Trains, train: Train, splits: Mapping[str, Split]) -> Trains:
        """Return the target moved against the task vector of the forget data."""
        return negated(target, train(target, "forget", self.optim), self.alpha)


@torch.no_grad()
def negated(target: Trains, tuned: Trains, alpha: float) -> Trains:
    """Return theta_t - alpha (theta_f - theta_t) as a copy of the target."""
    result = deepcopy(target)
    further = dict(tuned.named_parameters())
    for name, parameter in result.named_parameters():
        start = parameter.double()
        # the task vector is a small difference of large numbers, hence double precision
        parameter.copy_(start - alpha * (further[name].to(start) - start))
    return result
