"""Copyright traps: does a model distinguish sequences planted in its training data from unplanted twins?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.data.traps import PLANTED, TWIN
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.per_item import Separation
from unlearn.evaluators.text.scoring import answer_scores, texts
from unlearn.models.capabilities import Continues

ATTACK = Metric(
    name="attack_traps",
    label="attack by copyright traps (AUC)",
    formula="P(a planted trap scores above an unplanted one) + P(tie) / 2; `score: perplexity` is minus the mean NLL "
    "per token, `ratio` that plus the retrained model's; interval by DeLong's variance. 0.5: no trace",
    direction="retrained",
    source="Meeus et al. 2024",
)


@dataclass(frozen=True, kw_only=True)
class TrapsAttack(Evaluator[Continues]):
    """Area under the ROC curve of the attack that calls likelier traps planted: 0.5 is no trace, 1 a perfect attack.

    Members and others come from one generator, so only the training distinguishes them. Score ``perplexity`` is the
    model's mean NLL per token; ``ratio`` is that minus the retrained model's, the logarithm of the ratio of the two
    perplexities, which removes how likely a trap is by itself (for the retrained model it is 0.5 by construction).

    Args:
        batch_size: items per forward pass; does not change the result.

    Reference:
        Meeus et al., Copyright Traps for Large Language Models, 2024. arXiv:2402.09363
    """

    batch_size: PositiveInt = 16

    metrics: ClassVar = (ATTACK,)

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        data = texts(splits["forget"])
        if not (len(planted(splits["forget"])) and data.having([TWIN]).any()):
            raise RecipeError(
                "evaluate.traps needs traps in the forget set, and twins of them that were never trained on; this "
                "data has none. Take a source that plants them, or drop it: evaluate.traps=null."
            )

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        split = evaluation.splits["forget"]
        self.check(evaluation.splits)
        members, others = planted(split), torch.nonzero(split.dataset.having([TWIN])).flatten()
        everywhere = torch.nonzero(split.dataset.having([PLANTED])).flatten()
        repeats = len(everywhere) // len(planted(replace(split, ids=everywhere)))
        found = {
            subject: tuple(
                answer_scores(evaluation, subject, "forget", ids, batch_size=self.batch_size).nll
                for ids in (members, others)
            )
            for subject in evaluation.models
        }
        records = []
        for subject, (of_members, of_others) in found.items():
            scores = {"perplexity": (-of_members, -of_others)}
            if "retrained" in found:
                base = found["retrained"]
                scores["ratio"] = (base[0] - of_members, base[1] - of_others)
            for score, pair in scores.items():
                about = {"score": score, "budget": f"{len(members)} traps, {repeats} times"}
                records.append(evaluation.record(ATTACK, subject, "forget", Separation(*pair), about=about))
        return EvaluationResult(records)


def planted(split: Split) -> Tensor:
    """Return the ids of the planted traps of a split, each text once."""
    data = texts(split)
    ids = split.ids[data.having([PLANTED])[split.ids]].tolist()
    first = {data.words(item): item for item in reversed(ids)}
    return torch.tensor(sorted(first.values()), dtype=torch.int64)
