"""Relearning of answers: whether fine-tuning on a few forget items restores the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.records import Record
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.attacks.base.extraction import attack_records, attacked, scores_of
from unlearn.evaluators.attacks.base.relearning import Relearning
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.evaluators.sampling import without_traps
from unlearn.models.capabilities import TrainableLanguageModel

ATTACK = Metric(
    name="attack_relearning",
    label="attack by relearning",
    formula="exact memorisation (`score: extraction_strength`: that) of forget items after a copy was trained on `k "
    "items, n steps` (`budget`); `category: others` are never among the k and the same for every k, `relearned` are "
    "the k. 0 ... 1",
    unit="share",
    direction="retrained",
    source="Hu et al. 2025",
)


@dataclass(frozen=True, kw_only=True)
class AnswerRelearning(Relearning[TrainableLanguageModel]):
    """Trains a copy of every subject on k forget items and scores the others, which are the same for every k.

    If the others come back too, they were hidden, not forgotten.

    Args:
        scored: at most this many of the other items are scored, drawn by the seed; null takes all.

    Reference:
        Hu et al., Unlearning or Obfuscating? Jogging the Memory of Unlearned LLMs via Benign Relearning, 2025.
        arXiv:2406.13356
    """

    scored: PositiveInt | None = 100

    metrics: ClassVar = (ATTACK,)
    what: ClassVar[str] = "exact memorisation of the others"
    left: ClassVar[int] = 1
    tried_on: ClassVar[int] = 3

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        n = len(without_traps(splits["forget"]))
        if n <= max(self.items):
            raise RecipeError(
                f"evaluate.relearning trains on {max(self.items)} forget items and scores the others, but there are "
                f"only {n}. Type evaluate.relearning.items=[{max(1, n // 4)}], or forget more."
            )

    @override
    def candidates(self, evaluation: Evaluation[TrainableLanguageModel]) -> Tensor:
        return attacked(evaluation, None)

    @override
    def measure(
        self,
        evaluation: Evaluation[TrainableLanguageModel],
        subject: str,
        copy: TrainableLanguageModel,
        ids: Tensor,
        others: Tensor,
        budget: str,
    ) -> list[Record]:
        found = []
        for category, scored in (("others", others[: self.scored]), ("relearned", ids)):
            scores = scores_of(evaluation, copy, scored, self.batch_size)
            found += attack_records(evaluation, ATTACK, subject, scored, scores, budget, {"category": category})
        return found[:-1]  # exact memorisation alone for the items trained on
