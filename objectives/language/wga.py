"""Weighted gradient ascent."""

from dataclasses import dataclass

from unlearn.core.validation import NonNegativeFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import Reduction, reduced


@dataclass(frozen=True, kw_only=True)
class WGA(Objective[Continues]):
    """Lower the likelihood of forget tokens, each weighted by a power of it, so that what is forgotten is left alone.

    L = mean_t p_t^beta log p_t, with no gradient through the weight p_t^beta.

    Args:
        beta: the power, >= 0; 0 is gradient ascent.
        reduction: ``mean`` over the tokens of an answer, or the paper's ``sum``; the released code takes the mean over
            all tokens of a batch.

    Reference:
        Wang et al., Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond, 2025, the WGA objective
        (there the power is alpha). arXiv:2502.19301
    """

    beta: NonNegativeFloat = 1.0
    reduction: Reduction = "mean"

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the weighted log-likelihood per item, (B,), in nats per token."""
        answers = model.answers(batch)
        log_prob = answers.log_probs()
        # p^beta, detached: it only scales the gradient of log p, and is not lowered itself
        weight = (self.beta * log_prob.detach()).exp()
        diagnostics = {"nll": -answers.means(log_prob.detach()), "token_weight": answers.means(weight)}
        return Values(reduced(answers, weight * log_prob, self.reduction), diagnostics)
