"""What unlearning cost."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn.core.records import Direction, Record
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator


@dataclass(frozen=True, kw_only=True)
class Cost(Evaluator):
    """Seconds, their share of the target's training time (where that is known), peak memory, storage and steps.

    The training time is the one written down when the target was trained; for a model that ships, or one from another
    machine's cache, that was not on this machine, and the share says so in ``about.target``.
    """

    def __call__(self, evaluation: Evaluation) -> EvaluationResult:
        """Return ``cost_seconds``, ``cost_share``, ``peak_memory``, ``storage`` and ``steps`` of the run."""
        run, models = evaluation.run, evaluation.models
        figures: list[tuple[str, float, str, Direction]] = [
            ("cost_seconds", run.seconds, "s", "lower"),
            ("peak_memory", run.peak_memory / 2**20, "MiB", "lower"),
            ("storage", new_bytes(models["target"], models["unlearned"]) / 2**20, "MiB", "lower"),
            ("steps", float(run.steps), "", "none"),
        ]
        if run.target_seconds:
            figures.insert(1, ("cost_share", run.seconds / run.target_seconds, "share", "lower"))
        return EvaluationResult(
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


def new_bytes(target: nn.Module, unlearned: nn.Module) -> int:
    """Return the size of the tensors of the unlearned model that the target does not hold, under whatever name.

    It is what must be stored beside the target; none for a model that changes how the target is sampled.
    """
    held: dict[Hashable, list[Tensor]] = {}
    for tensor in _tensors(target):
        held.setdefault(_trace(tensor), []).append(tensor)
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in _tensors(unlearned)
        if not any(torch.equal(tensor, known) for known in held.get(_trace(tensor), ()))
    )


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield what a model stores, tied weights once."""
    seen = set()
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor) and (tensor.data_ptr(), tensor.shape) not in seen:
            seen.add((tensor.data_ptr(), tensor.shape))
            yield tensor


def _trace(tensor: Tensor) -> Hashable:
    """Return what equal tensors share, so that few are compared in full."""
    return tensor.shape, tensor.dtype, tensor.device, tuple(tensor.flatten()[:8].tolist())
