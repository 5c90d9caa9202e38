"""Maximum entropy: make every next token equally likely."""

import math
from dataclasses import dataclass

from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import Tokens, scoring


@dataclass(frozen=True, kw_only=True)
class MaximumEntropy(Objective[Continues]):
    """Drive the distribution at forget tokens towards the uniform one.

    L = mean_t KL(uniform || p_t) = mean_t (logsumexp z - mean_v z_v - log V); 0 where all tokens are equally likely.

    Args:
        tokens: ``answer`` counts the answer's tokens; ``all`` also the question's, as the released configuration does.

    Reference:
        Yuan et al., A Closer Look at Machine Unlearning for Large Language Models, 2025, the ME loss.
        arXiv:2410.08109; the released losses.py averages over all tokens of a batch rather than an item's.
    """

    tokens: Tokens = "answer"

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the divergence per item, (B,), in nats per token."""
        answers = model.answers(scoring(batch, self.tokens))
        logits = answers.logits
        divergence = logits.logsumexp(dim=1) - logits.mean(dim=1) - math.log(logits.shape[1])
        values = answers.means(divergence)
        return Values(values, {"divergence": values.detach()})
