"""Answer preservation: go on answering retain questions rather than declining."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from typing_extensions import override

from unlearn.core.validation import PositiveFloat
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import HasLikelihood
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import check_form


@dataclass(frozen=True, kw_only=True)
class AnswerPreservation(Objective[HasLikelihood]):
    """Keep the answer of a retain question more likely than a refusal; the retain half of IDK + AP.

    L = -(1 / beta) log sigmoid(-beta log(p(refusal | x) / p(y | x))), log p summed over tokens. No reference is needed.

    Args:
        beta: inverse temperature, > 0.

    Reference:
        Yuan et al., A Closer Look at Machine Unlearning for Large Language Models, 2025, the AP loss. arXiv:2410.08109;
        checked against the released losses.py.
    """

    beta: PositiveFloat = 0.1

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        check_form(splits[split], "refusal", "answer_preservation")

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return the loss per item, (B,), in nats / beta."""
        answer = model.log_prob(batch, context.randomness)
        refusal = model.log_prob(context.batch(context.split, batch["id"], "refusal"), context.randomness)
        preference = answer - refusal
        return Values(-F.logsigmoid(self.beta * preference) / self.beta, {"preference": preference.detach()})
