"""Cross-entropy unlearning."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from unlearn.core.validation import NonNegativeInt
from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues
from unlearn.models.language.answers import Answers
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class CEU(Objective[Continues]):
    """Teach the model its own distribution without the forget token.

    L = mean_t CE(softmax(z with z_y = -inf), softmax(z)), with no gradient through the first.

    Args:
        ignore_first: how many first tokens of an answer do not count, >= 0; they follow from the question's form more
            than from what is known. An answer without further tokens has the value 0.

    Reference:
        Yang, CE-U: Cross Entropy Unlearning, 2025. arXiv:2503.01224; leaving out the first token is a footnote of its
        training settings. The code in OpenUnlearning averages over all tokens of a batch rather than an answer's.
    """

    ignore_first: NonNegativeInt = 1

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the cross-entropy per item, (B,), in nats per token."""
        answers = later(model.answers(batch), self.ignore_first)
        # -inf before the softmax renormalises over the other tokens; detached, as the teacher is fixed within a step
        wanted = answers.logits.detach().scatter(1, answers.targets[:, None], -torch.inf).softmax(dim=1)
        values = answers.means(F.cross_entropy(answers.logits, wanted, reduction="none"))
        return Values(values, {"nll": -answers.means(answers.log_probs().detach())})


def later(answers: Answers, skip: int) -> Answers:
    """Return the answers without the first ``skip`` tokens of each."""
    kept = answers.places >= skip
    return Answers(answers.logits[kept], answers.targets[kept], answers.row[kept], answers.size)
