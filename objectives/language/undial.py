"""Unlearning by self-distillation on adjusted logits."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from typing_extensions import override

from unlearn.core.validation import NonNegativeFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.target_logits import recall_logits, remember_logits


@dataclass(frozen=True, kw_only=True)
class UNDIAL(Objective[Continues]):
    """Teach the model the target's distribution with the forget token's logit lowered.

    L = mean_t CE(softmax(z_target - beta onehot(y_t)), softmax(z)), over the answer's tokens. The teacher is fixed, so
    there is a minimum to reach. Its logits come from cached states through a frozen copy of the target's head.

    Args:
        beta: by how much the logit is lowered, >= 0; 0 is distillation of the target.

    Reference:
        Dong et al., UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models,
        2025. arXiv:2402.10052. OpenUnlearning's code also counts question and padding tokens (there the label -100
        lowers the logit of the 100th token from the end of the vocabulary) and divides by all of them; that is not
        offered.
    """

    beta: NonNegativeFloat = 10.0

    @override
    def prepare(self, model: Continues, context: Context[Continues]) -> None:
        remember_logits(model, context)

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the cross-entropy per item, (B,), in nats per token."""
        answers = model.answers(batch)
        teacher = recall_logits(model, context, batch["id"])
        lowered = torch.full_like(teacher[:, :1], -self.beta)
        # z_target - beta onehot(y): only the forget token's logit is lowered
        wanted = teacher.scatter_add(1, answers.targets[:, None], lowered).softmax(dim=1)
        values = answers.means(F.cross_entropy(answers.logits, wanted, reduction="none"))
        return Values(values, {"nll": -answers.means(answers.log_probs().detach())})
