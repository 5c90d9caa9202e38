"""Gradient ascent weighted by saturation and importance."""

from dataclasses import dataclass

from unlearn.core.validation import NonNegativeFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import Reduction, reduced


@dataclass(frozen=True, kw_only=True)
class SatImp(Objective[Continues]):
    """Lower the likelihood of forget tokens that are neither forgotten already nor certain anyway.

    L = mean_t p_t^beta1 (1 - p_t)^beta2 log p_t, with no gradient through the weight.

    Args:
        beta1: power of the saturation, >= 0; 0 switches it off.
        beta2: power of the importance, >= 0; 0 switches it off and leaves WGA.
        reduction: ``mean`` over the tokens of an answer, or their ``sum``; the released code takes the mean over all
            tokens of a batch.

    Reference:
        Yang et al., Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning, 2025, the SatImp weight.
        arXiv:2505.11953; the powers 5 and 1 are those of the released code.
    """

    beta1: NonNegativeFloat = 5.0
    beta2: NonNegativeFloat = 1.0
    reduction: Reduction = "mean"

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the weighted log-likelihood per item, (B,), in nats per token."""
        answers = model.answers(batch)
        log_prob = answers.log_probs()
        known = log_prob.detach()
        rest = (-known.clamp(max=0).expm1()).clamp(min=0)  # 1 - p
        # detached like WGA's: p^beta1 fades for what is forgotten, (1 - p)^beta2 for what is certain
        weight = (self.beta1 * known).exp() * rest**self.beta2
        diagnostics = {"nll": -answers.means(known), "token_weight": answers.means(weight)}
        return Values(reduced(answers, weight * log_prob, self.reduction), diagnostics)
