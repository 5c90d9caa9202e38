"""What unlearning cost."""

from __future__ import annotations

from dataclasses import dataclass

from unlearn.evaluators.base import Evaluation, Evaluator, Findings
from unlearn.metrics import Direction, Record


@dataclass(frozen=True, kw_only=True)
class Cost(Evaluator):
    """Seconds, their share of the target's training time (where that is known), peak memory and steps.

    The training time is the one written down when the target was trained; for a model that ships, or one from another
    machine's cache, that was not on this machine, and the share says so in ``about.target``.
    """

    def __call__(self, evaluation: Evaluation) -> Findings:
        """Return ``cost_seconds``, ``cost_share``, ``peak_memory`` and ``steps`` of the run."""
        run = evaluation.run
        figures: list[tuple[str, float, str, Direction]] = [
            ("cost_seconds", run.seconds, "s", "lower"),
            ("peak_memory", run.peak_memory / 2**20, "MiB", "lower"),
            ("steps", float(run.steps), "", "none"),
        ]
        if run.target_seconds:
            figures.insert(1, ("cost_share", run.seconds / run.target_seconds, "share", "lower"))
        return Findings(
            [
                Record(
                    evaluator="cost",
                    metric=metric,
                    about={"target": run.target_origin} if metric == "cost_share" and run.target_origin else {},
                    subject="unlearned",
                    value=value,
                    seed=evaluation.seed,
                    direction=direction,
                    unit=unit,
                )
                for metric, value, unit, direction in figures
            ]
        )
