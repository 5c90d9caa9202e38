"""Loss adjustment with only forget data, and the f-divergences in their variational form that it maximises."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import Continues
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import Instead, check_form

Name = Literal[
    "total_variation", "jensen_shannon", "pearson", "kl", "reverse_kl", "jeffrey", "squared_hellinger", "neyman"
]


@dataclass(frozen=True, kw_only=True)
class FLAT(Objective[Continues]):
    """Widen an f-divergence between a template answer and the forget answer, without retain data or a reference.

    L = -(g(P(y')) - f*(g(P(y)))), where P is the mean probability of an answer's tokens, y the forget answer, y' the
    answer to learn instead, f* the convex conjugate of f, and g its activation, which increases.

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


_LOG2 = math.log(2)


class Divergence(NamedTuple):
    """A divergence D_f(P || Q) = sup_T E_P[T] - E_Q[f*(T)] with T = g(v).

    Attributes:
        f: the convex function, f(1) = 0, of a density ratio.
        activation: g, increasing, from all numbers to the domain of f*.
        conjugate: f*, the convex conjugate of f, of T.
    """

    f: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]


def _jeffrey_conjugate(t: Tensor) -> Tensor:
    """Return f*(t) = w + 1/w + t - 2 with w = W(e^(1 - t)), Lambert's function; w solves w + log w = 1 - t."""
    start = (1 - t).detach()
    w = torch.where(start > 1, start - start.clamp(min=1).log(), start.clamp(max=1).exp() / 2).clamp(min=1e-30)
    for _ in range(20):
        w = w * (1 + start - w.log()) / (1 + w)  # Newton's step, which stays positive
    w = w * (1 + (1 - t) - w.log()) / (1 + w)  # once more, with the gradient
    return w + 1 / w + t - 2


DIVERGENCES: dict[str, Divergence] = {
    "total_variation": Divergence(lambda u: (u - 1).abs() / 2, lambda v: torch.tanh(v) / 2, lambda t: t),
    "jensen_shannon": Divergence(
        lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        lambda v: _LOG2 - F.softplus(-v),
        lambda t: -torch.log(2 - t.exp()),
    ),
    "pearson": Divergence(lambda u: (u - 1).square(), lambda v: v, lambda t: t.square() / 4 + t),
    "kl": Divergence(lambda u: u * u.log(), lambda v: v, lambda t: torch.exp(t - 1)),
    "reverse_kl": Divergence(lambda u: -u.log(), lambda v: -torch.exp(-v), lambda t: -1 - torch.log(-t)),
    "jeffrey": Divergence(lambda u: (u - 1) * u.log(), lambda v: v, _jeffrey_conjugate),
    "squared_hellinger": Divergence(
        lambda u: (u.sqrt() - 1).square(), lambda v: 1 - torch.exp(-v), lambda t: t / (1 - t)
    ),
    "neyman": Divergence(
        lambda u: (1 - u).square() / u, lambda v: 1 - torch.exp(-v), lambda t: 2 - 2 * torch.sqrt(1 - t)
    ),
}
"""Nowozin et al., f-GAN, 2016, tables 1 and 6. arXiv:1606.00709"""

RELEASED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "reverse_kl": (lambda v: -torch.exp(v), lambda v: -1 - v),
    "jeffrey": (lambda v: v, lambda v: v + v.square() / 4 + v**3 / 16),
    "squared_hellinger": (lambda v: 1 - torch.exp(v), lambda v: (1 - torch.exp(v)) / torch.exp(v)),
    "neyman": (lambda v: 1 - torch.exp(v), lambda v: 2 - 2 * torch.sqrt(1 - v)),
}
"""g(v) and f*(g(v)) as FLAT's released code writes them, where that differs. In three of them g decreases, so that the
loss lowers the template and, but for Neyman's, raises the forget answer; Jeffrey's is a Taylor polynomial."""
