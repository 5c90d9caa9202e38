"""Direct preference optimization of another answer over the forget answer: IdkDPO and AltPO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from typing_extensions import override

from unlearn.core.validation import PositiveFloat
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import HasLikelihood
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import Instead, check_form, recall_log_prob, remember_log_prob


@dataclass(frozen=True, kw_only=True)
class DPO(Objective[HasLikelihood]):
    """Prefer another answer to the forget answer, relative to the target.

    L = -log sigmoid(beta (log(p(y') / p_target(y')) - log(p(y) / p_target(y)))), y the forget answer and y' the answer
    to learn instead, log p summed over tokens. ``refusal`` is IdkDPO, ``alternate`` AltPO.

    Two numbers per item are cached of the target; no second model is held.

    Args:
        instead: which other answer.
        beta: inverse temperature, > 0.
        variant: ``paper`` is the formula above; ``released`` has the factor 2 / beta of the unlearning codes
            (SimNPO's, OpenUnlearning), by which it becomes NPO where y' drops out.

    Reference:
        Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward Model, 2023, eq. 7.
        arXiv:2305.18290. For unlearning: Maini et al., TOFU, 2024 (preference optimization), arXiv:2401.06121, and
        Mekala et al., Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models,
        2024, arXiv:2409.13474.
    """

    instead: Instead = "refusal"
    beta: PositiveFloat = 0.1
    variant: Literal["paper", "released"] = "paper"

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        check_form(splits[split], self.instead, "dpo")

    @override
    def prepare(self, model: HasLikelihood, context: Context[HasLikelihood]) -> None:
        remember_log_prob(model, context)
        remember_log_prob(model, context, self.instead)

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return the loss per item, (B,)."""
        ids = batch["id"]
        lose = model.log_prob(batch, context.randomness) - recall_log_prob(context, ids)
        other = context.batch(context.split, ids, self.instead)
        win = model.log_prob(other, context.randomness) - recall_log_prob(context, ids, self.instead)
        factor = 1.0 if self.variant == "paper" else 2 / self.beta
        values = -factor * F.logsigmoid(self.beta * (win - lose))
        return Values(values, {"log_ratio": lose.detach(), "log_ratio_instead": win.detach()})
