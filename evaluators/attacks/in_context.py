"""Reintroduction in context: other forgotten facts precede the question in the prompt."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import PositiveInt
from unlearn.evaluators.attacks.base.extraction import forget_texts
from unlearn.evaluators.attacks.base.prompting import Pair, PromptAttack, related_questions, with_context
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.models.capabilities import Continues

ATTACK = Metric(
    name="attack_in_context",
    label="attack by examples in context",
    formula="exact memorisation and extraction strength (`score`) of questions behind `budget` other forget "
    "questions of the same label with their answers. 0 ... 1",
    unit="share",
    direction="retrained",
    source="Shumailov et al. 2024",
)


@dataclass(frozen=True, kw_only=True)
class InContext(PromptAttack):
    """Puts other forget questions of the same label and their true answers before the question.

    A model that never saw the data may also benefit from the context; only a larger gain shows what was not forgotten.

    Args:
        facts: number of other questions with answers, >= 1; fewer where a label has fewer, or where they exceed the
            model's context.

    Reference:
        Shumailov et al., UnUnlearning: Unlearning is not sufficient for content regulation in advanced generative AI,
        2024. arXiv:2407.00106
    """

    facts: PositiveInt = 5

    metrics: ClassVar = (ATTACK,)

    @override
    def budget(self) -> str:
        return f"{self.facts} facts"

    @override
    def ways(self, evaluation: Evaluation[Continues], subject: str, ids: Tensor) -> list[list[Pair]]:
        data, encoder = forget_texts(evaluation)
        found: list[list[Pair]] = []
        for item in ids.tolist():
            facts = [" ".join(data.words(other)) for other in related_questions(evaluation, data, item, self.facts)]
            found.append([with_context(encoder, facts, *data.words(item))])
        return found
