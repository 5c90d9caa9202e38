"""Negative preference optimization."""

from dataclasses import dataclass

import torch.nn.functional as F
from typing_extensions import override

from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import recall_log_prob, remember_log_prob


@dataclass(frozen=True, kw_only=True)
class NPO(Objective[HasLikelihood]):
    """Push forget answers below the target's likelihood, with a gradient that fades as they fall.

    L = -(2 / beta) log sigmoid(-beta log(p(y | x) / p_target(y | x))), log p summed over the answer's tokens. Its
    gradient is that of ascent on the summed log-likelihood times 2 p^beta / (p^beta + p_target^beta); as beta goes to
    0 that weight goes to 1. At equal models the loss is (2 / beta) log 2.

    One number per item is cached of the target; no second model is held.

    Args:
        beta: inverse temperature, > 0.

    Reference:
        Zhang et al., Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning, 2024,
        eq. 3. arXiv:2404.05868. MUSE's released code puts raw logits in place of log p; it is not followed.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be > 0. For its limit 0 take gradient_ascent")

    @override
    def prepare(self, model: HasLikelihood, context: Context[HasLikelihood]) -> None:
        remember_log_prob(model, context)

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return the loss per item, (B,), in nats / beta."""
        # log(p / p_target): summed over the answer's tokens, as a mean would change what beta means with the length
        log_ratio = model.log_prob(batch, context.randomness) - recall_log_prob(context, batch["id"])
        return Values(-2 / self.beta * F.logsigmoid(-self.beta * log_ratio), {"log_ratio": log_ratio.detach()})
