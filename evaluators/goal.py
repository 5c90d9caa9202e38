"""Whether the objectives reached their goals."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.models.capabilities import Model

REACHED = Metric(
    name="reached",
    label="goal of the method reached",
    formula="1 where the objective named in `score` reached its goal, else 0",
    direction="higher",
)


@dataclass(frozen=True, kw_only=True)
class Goal(Evaluator[Model]):
    """1 where an objective reached its goal, 0 where the run ended before; ``score`` names the term."""

    metrics: ClassVar = (REACHED,)
    of_the_run: ClassVar = True

    @override
    def __call__(self, evaluation: Evaluation[Model]) -> EvaluationResult:
        return EvaluationResult(
            [
                evaluation.record(REACHED, "unlearned", "forget", float(bool(state["reached"])), about={"score": term})
                for term, state in evaluation.run.state.items()
                if "reached" in state
            ]
        )
