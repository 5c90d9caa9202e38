"""What unlearning cost."""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric

SECONDS = Metric(
    name="cost_seconds",
    label="time of unlearning",
    formula="wall time of unlearning, preparation included, evaluation not",
    unit="s",
    direction="lower",
)
SHARE = Metric(
    name="cost_share",
    label="time relative to training",
    formula="`cost_seconds` / wall time of the target's training as it was recorded then (`target: shipped`: on the "
    "machine that packaged it); absent where that is unknown",
    unit="share",
    direction="lower",
)
MEMORY = Metric(
    name="peak_memory",
    label="peak memory",
    formula="of the GPU: peak during the steps; of a CPU process: peak so far, a target trained in the same process "
    "included",
    unit="MiB",
    direction="lower",
)
STORAGE = Metric(
    name="storage",
    label="storage",
    formula="size of the tensors of the unlearned model that the target does not hold, under whatever name, in "
    "single precision: what must be kept in addition to the target; 0 for a guard",
    unit="MiB",
    direction="lower",
    source="Zhang et al. 2024 (UnlearnCanvas)",
)
STEPS = Metric(name="steps", label="steps", formula="optimizer steps taken")


@dataclass(frozen=True, kw_only=True)
class Cost(Evaluator[nn.Module]):
    """Seconds, their share of the target's training time (where that is known), peak memory, storage and steps.

    The training time is the one recorded when the target was trained. For a shipped model, or one from another
    machine's cache, that was another machine; ``about.target`` says where the target came from.
    """

    metrics: ClassVar = (SECONDS, SHARE, MEMORY, STORAGE, STEPS)
    of_the_run: ClassVar = True

    @override
    def __call__(self, evaluation: Evaluation[nn.Module]) -> EvaluationResult:
        run = evaluation.run
        held = digests(evaluation.models["target"])  # one model at a time: hashes, not tensors, are compared
        figures: list[tuple[Metric, float, dict[str, str]]] = [
            (SECONDS, run.seconds, {}),
            (MEMORY, run.peak_memory / 2**20, {}),
            (STORAGE, bytes_not_in(held, evaluation.models["unlearned"]) / 2**20, {}),
            (STEPS, float(run.steps), {}),
        ]
        if run.target_seconds:
            about = {"target": run.target_origin} if run.target_origin else {}
            figures.insert(1, (SHARE, run.seconds / run.target_seconds, about))
        return EvaluationResult(
            [evaluation.record(metric, "unlearned", "", value, about=about) for metric, value, about in figures]
        )


def digests(model: nn.Module) -> set[str]:
    """Return a hash of each tensor that a model stores; they outlive the model and tell which tensors it held."""
    return {_digest(tensor) for tensor in _tensors(model)}


def bytes_not_in(held: Container[str], model: nn.Module) -> int:
    """Return the size of a model's tensors whose hash is not in ``held``.

    This is what an unlearned model needs in addition to the target; 0 where only its sampling changed.
    """
    return sum(tensor.nbytes for tensor in _tensors(model) if _digest(tensor) not in held)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    seen = set()  # tied weights share their storage and count once
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
