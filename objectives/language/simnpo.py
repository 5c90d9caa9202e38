"""Simple negative preference optimization: without a reference, by length."""

from dataclasses import dataclass

import torch.nn.functional as F

from unlearn.core.validation import PositiveFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class SimNPO(Objective[HasLikelihood]):
    """Push forget answers below a fixed likelihood per token, with a gradient that fades as they fall.

    L = -(2 / beta) log sigmoid(-(beta / |y|) log p(y | x) - margin).

    Args:
        beta: inverse temperature, > 0.
        margin: the reward margin, gamma of the paper; a larger one keeps the gradient longer.
        scaled_margin: multiply the margin by beta, as the released code does (and OpenUnlearning, there called delta).

    Reference:
        Fan et al., Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning, 2024, eq. 4.
        arXiv:2410.07163
    """

    beta: PositiveFloat = 4.5
    margin: float = 0.0
    scaled_margin: bool = False

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return the loss per item, (B,), in nats per token / beta."""
        nll = -model.log_prob(batch, context.randomness) / model.dimensions(batch).clamp(min=1)
        margin = self.beta * self.margin if self.scaled_margin else self.margin
        return Values(-2 / self.beta * F.logsigmoid(self.beta * nll - margin), {"nll": nll.detach()})
