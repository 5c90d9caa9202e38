"""Whether the objectives reached their goals."""

from __future__ import annotations

from dataclasses import dataclass

from unlearn.core.records import Record
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator


@dataclass(frozen=True, kw_only=True)
class Goal(Evaluator):
    """1 where an objective reached its goal, 0 where the run ended before; ``score`` names the term."""

    def __call__(self, evaluation: Evaluation) -> EvaluationResult:
        """Return ``reached`` for every objective that has a goal."""
        return EvaluationResult(
            [
                Record(
                    evaluator="goal",
                    metric="reached",
                    subject="unlearned",
                    split="forget",
                    about={"score": term},
                    value=float(bool(state["reached"])),
                    seed=evaluation.seed,
                    direction="higher",
                )
                for term, state in evaluation.run.state.items()
                if "reached" in state
            ]
        )
