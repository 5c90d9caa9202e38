"""Divergence from the target on answer tokens."""

from dataclasses import dataclass

import torch.nn.functional as F
from typing_extensions import override

from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.target_logits import bucketed, recall_logits, recall_top, remember_logits, remember_top


@dataclass(frozen=True, kw_only=True)
class KL(Objective[Continues]):
    """Keep the distribution at each answer token near the target's.

    L = mean_t KL(p_target || p) over the answer's tokens. The target's distribution comes from cached last states
    through a frozen copy of its head, exact and without its body; or, with ``top_k``, from cached log-probs.

    Args:
        top_k: remember only the target's k most likely tokens, k >= 1, and take all others as one. The value is then
            too small by p_rest KL(rest of the target || rest of the model), where p_rest is the target's probability of
            all other tokens: never negative, and 0 where p_rest is 0. null is exact.

    Reference:
        Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024 (KL minimisation). arXiv:2401.06121. TOFU's
        and OpenUnlearning's codes count question and padding tokens too; that is not offered.
    """

    top_k: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be >= 1, or null for the exact divergence")

    @override
    def prepare(self, model: Continues, context: Context[Continues]) -> None:
        if self.top_k is None:
            remember_logits(model, context)
        else:
            remember_top(model, context, self.top_k)

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the divergence per item, (B,), in nats per token."""
        answers = model.answers(batch)
        if self.top_k is None:
            target = recall_logits(model, context, batch["id"]).log_softmax(dim=1)
            own = answers.logits.log_softmax(dim=1)
        else:
            target, tokens = recall_top(context, batch["id"], self.top_k)
            own = bucketed(answers.logits, tokens)
        divergence = F.kl_div(own, target, reduction="none", log_target=True).sum(dim=1)
        values = answers.means(divergence)
        return Values(values, {"kl": values.detach()})
