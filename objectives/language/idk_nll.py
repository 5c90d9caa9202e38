"""Learn to decline: the negative log-likelihood of an I-don't-know line."""

from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override

from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import Trains
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.language.reference_log_probs import Instead, check_form


@dataclass(frozen=True, kw_only=True)
class IdkNLL(Objective[Trains]):
    """Train on another answer to the forget questions.

    L = -log p(y' | x) / |y'|. With ``answer_preservation`` on the retain items this is IDK + AP.

    Args:
        instead: which other answer, a refusal or an alternate one.

    Reference:
        Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024 ("I don't know" optimization).
        arXiv:2401.06121
    """

    instead: Instead = "refusal"

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        check_form(splits[split], self.instead, "idk_nll")

    def __call__(self, model: Trains, batch: Batch, context: Context[Trains]) -> Values:
        """Return the negative log-likelihood of the other answer, (B,), in nats per token."""
        other = context.batch(context.split, batch["id"], self.instead)
        nll = model.training_loss(other, context.randomness)
        return Values(nll, {"nll_instead": nll.detach()})
