"""Gradient ascent on forget answers: the baseline that lowers their likelihood without end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearn.data.base import Batch
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.terms import Reduction


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Objective):
    """Raise the negative log-likelihood of forget answers.

    L = log p(y | x), or that divided by the answer's tokens. Nothing bounds it from below: without a retain term the
    model collapses, which is what this baseline is kept for. With ``training_loss`` on the retain items it is the
    gradient difference.

    Args:
        reduction: ``mean`` over the tokens of an answer, as in training, or their ``sum``.

    Reference:
        Jang et al., Knowledge Unlearning for Mitigating Privacy Risks in Language Models, 2023 (the sum).
        arXiv:2210.01504. The mean, and the gradient difference, as in Maini et al., TOFU, 2024. arXiv:2401.06121.
    """

    reduction: Reduction = "mean"

    needs = ("likelihood",)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return log p an item, (B,), in nats (``sum``) or nats a token (``mean``)."""
        log_prob = model.log_prob(batch, context.randomness)
        mean = log_prob / model.dimensions(batch).clamp(min=1)
        return Values(mean if self.reduction == "mean" else log_prob, {"nll": -mean.detach()})
