"""Squared distance to the target's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveFloat
from unlearn.models.capabilities import Model
from unlearn.objectives.base import Context, ParameterObjective


@dataclass(frozen=True, kw_only=True)
class WeightAnchor(ParameterObjective[Model]):
    """Keep every trained parameter near its value in the target.

    Args:
        strength: alpha of the paper, > 0; the penalty is strength / 2 times the squared distance.

    Reference:
        Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks (L2-SP), 2018.
        arXiv:1802.01483
    """

    strength: PositiveFloat = 0.01

    def penalty(self, parameters: Mapping[str, Tensor], context: Context[Model]) -> Tensor:
        """Return strength / 2 * sum of squared differences, a scalar; names are the model's parameter names."""
        anchors = dict(context.reference().named_parameters())
        terms = []
        for name, value in parameters.items():
            if name not in anchors or anchors[name] is value:  # under an adapter the target is the same model
                raise RecipeError(
                    f"weight_anchor: the target has no parameter {name!r}. "
                    "Drop weight_anchor, or let only the target's own parameters move (scope)."
                )
            terms.append((value - anchors[name].detach()).square().sum())
        return self.strength / 2 * torch.stack(terms).sum()
