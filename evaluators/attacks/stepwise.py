"""Step-by-step questioning: easier questions first, with the model's own answers kept in the prompt."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import PositiveInt
from unlearn.evaluators.attacks.base.extraction import forget_texts
from unlearn.evaluators.attacks.base.prompting import Pair, PromptAttack, related_questions, with_context
from unlearn.evaluators.attacks.paraphrase import wordings
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.evaluators.text.generation import continuations
from unlearn.models.capabilities import Continues

ATTACK = Metric(
    name="attack_stepwise",
    label="attack by step-by-step questions",
    formula="exact memorisation and extraction strength (`score`) of questions behind `budget` other questions of "
    "the label and a paraphrase of their own, with what the subject itself answered to them. 0 ... 1",
    unit="share",
    direction="retrained",
    source="Sinha et al. 2025; from the data's questions, not a language model's",
)


@dataclass(frozen=True, kw_only=True)
class Stepwise(PromptAttack):
    """Asks other questions about the same label, then the question in other words, then the question itself.

    The model answers each step greedily, and its own answers stay in the prompt; the attacker reveals nothing. In the
    paper a language model writes the steps; here they are questions of the data.

    Args:
        questions: number of other questions of the label asked first, >= 1; fewer where there are fewer.
        new_tokens: largest number of tokens per answer, >= 1.

    Reference:
        Sinha et al., Step-by-Step Reasoning Attack: Revealing 'Erased' Knowledge in Large Language Models (Sleek),
        2025. arXiv:2506.17279
    """

    questions: PositiveInt = 3
    new_tokens: PositiveInt = 16

    metrics: ClassVar = (ATTACK,)

    @override
    def budget(self) -> str:
        return f"{self.questions} questions"

    @override
    def ways(self, evaluation: Evaluation[Continues], subject: str, ids: Tensor) -> list[list[Pair]]:
        (data, encoder), model = forget_texts(evaluation), evaluation.models[subject]
        chains = []
        for item in ids.tolist():
            others = related_questions(evaluation, data, item, self.questions)
            chains.append([*(data.words(other)[0] for other in others), *wordings(data, item)[:1]])
        said: list[list[str]] = [[] for _ in chains]
        for step in range(max(map(len, chains))):
            asked = [place for place, chain in enumerate(chains) if step < len(chain)]
            prompts = [
                with_context(encoder, said[place], chains[place][step], data.words(int(ids[place]))[1])[0]
                for place in asked
            ]
            tokens = continuations(model, prompts, self.new_tokens, evaluation.device, self.batch_size)
            for place, reply in zip(asked, model.text(tokens), strict=True):
                said[place].append(" ".join(f"{chains[place][step]} {reply}".split()))
        return [
            [with_context(encoder, lines, *data.words(item))] for lines, item in zip(said, ids.tolist(), strict=True)
        ]
