"""Time per sample."""

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar, Self

from typing_extensions import override

from unlearn.core.validation import PositiveInt
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import drawn, sampled_items, sampled_splits
from unlearn.models.capabilities import Samples

TIME = Metric(
    name="sampling_time",
    label="sampling time",
    formula="milliseconds per sample on the run's device, samples drawn in one batch: the median over rounds, after "
    "one to warm up",
    unit="ms",
    direction="lower",
)


@dataclass(frozen=True, kw_only=True)
class SamplingTime(Evaluator[Samples]):
    """Milliseconds per sample on the run's device: the median over rounds, after one to warm up.

    A model is timed with its own number of steps and its own guidance.

    Args:
        samples: number drawn at once.
        rounds: number of timed rounds.
    """

    samples: PositiveInt = 100
    rounds: PositiveInt = 3

    metrics: ClassVar = (TIME,)

    @override
    def smallest(self) -> Self:
        return replace(super().smallest(), rounds=1)

    @override
    def __call__(self, evaluation: Evaluation[Samples]) -> EvaluationResult:
        split = sampled_splits(evaluation)[-1]
        items = sampled_items(evaluation, split, self.samples) if split else None

        def seconds(subject: str) -> float:
            began = time.perf_counter()
            drawn(evaluation, evaluation.models[subject], split, items, self.samples, count=self.samples)
            return time.perf_counter() - began

        records = []
        for subject in evaluation.models:
            taken = [seconds(subject) for _ in range(self.rounds + 1)][1:]
            milliseconds = 1000 * median(taken) / self.samples
            records.append(evaluation.record(TIME, subject, "", milliseconds, n=self.rounds))
        return EvaluationResult(records)
