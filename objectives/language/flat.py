"""Loss adjustment with only forget data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from typing_extensions import override

from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.divergences import DIVERGENCES, RELEASED
from unlearn.objectives.language.reference_log_probs import Instead, check_form

Name = Literal[
    "total_variation",
    "jensen_shannon",
    "pearson",
    "kl",
    "reverse_kl",
    "jeffrey",
    "squared_hellinger",
    "neyman",
]


@dataclass(frozen=True, kw_only=True)
class FLAT(Objective[Continues]):
    """Widen an f-divergence between a template answer and the forget answer, without retain data or a reference.

    L = -(g(P(y')) - f*(g(P(y)))), where P is the mean probability of an answer's tokens, y the forget answer, y' what
    is to be said instead, f* the convex conjugate of f, and g its activation, which increases.

    Args:
        divergence: which f.
        instead: the template: a refusal, or an alternate answer.
        variant: ``derived`` follows the variational form for all divergences. ``released`` takes the authors' code for
            reverse_kl, squared_hellinger and neyman, whose g decreases, and for jeffrey, a Taylor polynomial; the other
            four are the same in both. The code also divides P by the length of the padded batch, and applies g to the
            batch's mean; that is not offered.

    Reference:
        Wang et al., LLM Unlearning via Loss Adjustment with Only Forget Data, 2024, table 2 (g and f* by divergence).
        arXiv:2410.11143
    """

    divergence: Name = "total_variation"
    instead: Instead = "refusal"
    variant: Literal["derived", "released"] = "derived"

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        check_form(splits[split], self.instead, "flat")

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the loss per item, (B,)."""
        forget = _probability(model, batch)
        template = _probability(model, context.batch(context.split, batch["id"], self.instead))
        diagnostics = {"probability": forget.detach(), "probability_instead": template.detach()}
        return Values(self.loss(template, forget), diagnostics)

    def loss(self, template: Tensor, forget: Tensor) -> Tensor:
        """Return the loss of mean token probabilities of template and forget answers, all (B,)."""
        if self.variant == "released" and self.divergence in RELEASED:
            reward, penalty = RELEASED[self.divergence]
            return penalty(forget) - reward(template)
        chosen = DIVERGENCES[self.divergence]
        return chosen.conjugate(chosen.activation(forget)) - chosen.activation(template)


def _probability(model: Continues, batch: Batch) -> Tensor:
    """Return the mean probability of an answer's tokens, (B,)."""
    answers = model.answers(batch)
    probability: Tensor = answers.means(answers.log_probs().exp())
    return probability
