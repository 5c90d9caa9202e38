"""Squared distance to the target's parameters."""

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
        return self.strength / 2 * pull(parameters, anchors_of(parameters, context, "weight_anchor"))


def anchors_of(parameters: Mapping[str, Tensor], context: Context[Model], term: str) -> dict[str, Tensor]:
    """Return the target's values of parameters, by name. Raises RecipeError for one that it lacks."""
    anchors = dict(context.reference().named_parameters())
    for name, value in parameters.items():
        if name not in anchors or anchors[name] is value:  # under an adapter the target is the same model
            raise RecipeError(
                f"{term}: the target has no parameter {name!r}. Drop {term}, or train the target's own parameters "
                "only (scope)."
            )
    return {name: anchors[name].detach() for name in parameters}


def pull(
    values: Mapping[str, Tensor], anchors: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return sum_i F_i (theta_i - anchor_i)^2, a scalar, with F = 1 where no importance is given."""
    terms = []
    for name, value in values.items():
        square = (value - anchors[name].to(value)).square()
        terms.append((square if importance is None else importance[name].to(value) * square).sum())
    return torch.stack(terms).sum()
