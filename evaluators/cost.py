"""What unlearning cost."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
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
        run = evaluation.run
        held = digests(evaluation.models["target"])  # one model at a time: hashes, not tensors, are compared
        figures: list[tuple[str, float, str, Direction]] = [
            ("cost_seconds", run.seconds, "s", "lower"),
            ("peak_memory", run.peak_memory / 2**20, "MiB", "lower"),
            ("storage", bytes_not_in(held, evaluation.models["unlearned"]) / 2**20, "MiB", "lower"),
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


def digests(model: nn.Module) -> set[str]:
    """Return a hash of each tensor that a model stores, by which it is known when the model is not there any more."""
    return {_digest(tensor) for tensor in _tensors(model)}


def bytes_not_in(held: Container[str], model: nn.Module) -> int:
    """Return the size of a model's tensors whose hash is not among those held.

    Of an unlearned model it is what must be stored beside the target; none where it is only sampled in another way.
    """
    return sum(tensor.nbytes for tensor in _tensors(model) if _digest(tensor) not in held)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield what a model stores, tied weights once."""
    seen = set()
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor) and (tensor.data_ptr(), tensor.shape) not in seen:
            seen.add((tensor.data_ptr(), tensor.shape))
            yield tensor


def _digest(tensor: Tensor) -> str:
    """Return a hash of type, shape and values; equal tensors share it."""
    values = (tensor + 0 if tensor.is_floating_point() else tensor).detach().cpu().contiguous()  # -0.0 becomes 0.0
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
