"""Squared distance to the target's hidden states."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unlearn.data.base import Batch
from unlearn.models.capabilities import HasHiddenStates
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import Tokens, token_mask


@dataclass(frozen=True, kw_only=True)
class EmbeddingDifference(Objective[HasHiddenStates]):
    """Keep the hidden states after a layer where they were in the target: the retain half of RMU.

    L = mean over an item's tokens of |h - h_target|^2 / D, or of |h - h_target|^2. The target's states are cached on
    disk (D numbers per token); no second model is held. At the target itself the gradient is 0.

    Args:
        layer: after which layer, 1 is the first and -1 the last. Layers above it get no gradient from this term.
        tokens: ``answer`` counts the answer's tokens, ``all`` every real one.
        reduction: of the square over D: ``mean`` as in the released code, or the paper's ``sum``; as in ``rmu``, or
            the two terms differ by a factor D.

    Reference:
        Li et al., The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning, 2024, the retain loss
        of RMU. arXiv:2403.03218
    """

    layer: int = 2
    tokens: Tokens = "answer"
    reduction: Literal["mean", "sum"] = "mean"

    def prepare(self, model: HasHiddenStates, context: Context[HasHiddenStates]) -> None:
        """Keep the target's hidden states."""

        def compute(batch: Batch) -> tuple[Tensor, Tensor]:
            mask = token_mask(batch, self.tokens)
            return model.hidden(batch, self.layer)[mask], mask.sum(dim=1)

        context.remember(self._name, context.split, compute)

    def __call__(self, model: HasHiddenStates, batch: Batch, context: Context[HasHiddenStates]) -> Values:
        """Return the mean squared difference per item, (B,)."""
        mask = token_mask(batch, self.tokens)
        difference = model.hidden(batch, self.layer)[mask] - context.recall(self._name, context.split, batch["id"])
        values = token_means(reduced(difference.square(), self.reduction), mask)
        return Values(values, {"distance": values.detach()})

    @property
    def _name(self) -> str:
        return f"hidden_{self.layer}_{self.tokens}"


def reduced(squares: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """Return the mean or the sum over D of squares (N, D), (N,)."""
    return squares.mean(dim=1) if reduction == "mean" else squares.sum(dim=1)


def token_means(values: Tensor, mask: Tensor) -> Tensor:
    """Return means per item, (B,), of values (N,) of the True tokens of a mask (B, T); 0 where there are none."""
    row = mask.nonzero(as_tuple=True)[0]
    sums = values.new_zeros(len(mask)).index_add(0, row, values)
    counts: Tensor = mask.sum(dim=1).clamp(min=1)
    return torch.div(sums, counts)
