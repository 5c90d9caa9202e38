"""Representation misdirection for unlearning."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import PositiveFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasHiddenStates
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.embedding_difference import reduced, token_means
from unlearn.objectives.language.reference_log_probs import Tokens, token_mask


@dataclass(frozen=True, kw_only=True)
class RMU(Objective[HasHiddenStates]):
    """Steer the hidden states of forget items to one random direction of a given length.

    L = mean over an item's tokens of |h - c u|^2 / D, u drawn once, uniform in [0, 1) and then scaled to length 1. The
    retain half is ``embedding_difference`` at the same layer and with the same reduction. The paper trains the down
    projections of three layers, this one and the two below (``scope=pattern``); layers above it get no gradient.

    Args:
        coefficient: c, the length that the hidden states are to have, > 0.
        layer: after which layer, 1 is the first and -1 the last. The released code's layer 7 is the 8th, ``layer=8``.
        tokens: ``answer`` counts the answer's tokens, ``all`` every real one, as in the released code for passages.
        reduction: of the square over D: ``mean`` as in the released code, to whose scale the published coefficients
            belong, or the paper's ``sum``.

    State:
        steering: u, (D,).

    Reference:
        Li et al., The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning, 2024, the forget loss
        of RMU. arXiv:2403.03218
    """

    coefficient: PositiveFloat = 6.5
    layer: int = 2
    tokens: Tokens = "answer"
    reduction: Literal["mean", "sum"] = "mean"

    @override
    def prepare(self, model: HasHiddenStates, context: Context[HasHiddenStates]) -> None:
        with torch.no_grad():
            hidden = model.hidden(context.batch(context.split, context.splits[context.split].ids[:1]), self.layer)
        one = torch.zeros(1, dtype=torch.int64)
        drawn = context.randomness.child("steering").uniform(one, (hidden.shape[-1],), torch.float64)[0]
        context.state["steering"] = drawn / drawn.norm()

    def __call__(self, model: HasHiddenStates, batch: Batch, context: Context[HasHiddenStates]) -> Values:
        """Return the squared distance to c u per item, (B,)."""
        mask = token_mask(batch, self.tokens)
        hidden: Tensor = model.hidden(batch, self.layer)[mask]
        square = (hidden - self.coefficient * context.state["steering"].to(hidden)).square()
        values = token_means(reduced(square, self.reduction), mask)
        return Values(values, {"norm": token_means(hidden.detach().norm(dim=1), mask)})
