"""Paraphrase attack: rephrase the question."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.data.text import TextDataset
from unlearn.evaluators.attacks.base.extraction import forget_texts
from unlearn.evaluators.attacks.base.prompting import Pair, PromptAttack
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.models.capabilities import Continues

ATTACK = Metric(
    name="attack_paraphrase",
    label="attack by paraphrased questions",
    formula="exact memorisation and extraction strength (`score`) of questions in other words, each the best over "
    "the item's paraphrases. 0 ... 1",
    unit="share",
    direction="retrained",
    source="Jin et al. 2024 (RWKU)",
)


@dataclass(frozen=True, kw_only=True)
class Paraphrase(PromptAttack):
    """Asks every form ``paraphrased_question...`` of an item; the best one counts.

    Only items that have such a form are attacked.

    Reference:
        Jin et al., RWKU: Benchmarking Real-World Knowledge Unlearning for Large Language Models, 2024 (synonym
        manipulation, among its adversarial probes). arXiv:2406.10890
    """

    metrics: ClassVar = (ATTACK,)
    lacking: ClassVar[str] = "no forget question has other wordings"

    @override
    def budget(self) -> str:
        return "all paraphrases"

    @override
    def open_to(self, data: TextDataset) -> Tensor:
        return torch.tensor([bool(wordings(data, item)) for item in range(len(data))], dtype=torch.bool)

    @override
    def ways(self, evaluation: Evaluation[Continues], subject: str, ids: Tensor) -> list[list[Pair]]:
        data, encoder = forget_texts(evaluation)
        return [
            [encoder.encode(question, data.words(item)[1]) for question in wordings(data, item)]
            for item in ids.tolist()
        ]


def wordings(data: TextDataset, item: int) -> list[str]:
    """Return the paraphrases of an item's question, without repeats."""
    forms = sorted(data.items[item].forms.items())
    return list(dict.fromkeys(pair[0] for name, pair in forms if name.startswith("paraphrased_question")))
