"""Quantisation: whether rounding the weights undoes unlearning."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar, override

from unlearn.core.validation import PositiveInt
from unlearn.evaluators.attacks.base.extraction import attack_records, attacked, scores_of
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.models.capabilities import Continues, Model
from unlearn.models.experts import expert_weights

Quantized = TypeVar("Quantized", bound=Model)

ATTACK = Metric(
    name="attack_quantization",
    label="attack by rounding the weights",
    formula="exact memorisation and extraction strength (`score`) after every linear weight, of each expert too, was "
    "rounded to s round(w / s), s = max over an output channel of |w| / (2^(bits - 1) - 1); embeddings, an output "
    "layer tied to them, routers, norms and biases are kept. 0 ... 1",
    unit="share",
    direction="retrained",
    source="Zhang et al. 2025",
)

CODES = Metric(
    name="codes_changed",
    label="weights whose code changed",
    formula="share of those weights whose code round(w / s) is not the target's, for every subject but the target",
    unit="share",
)


@dataclass(frozen=True, kw_only=True)
class Quantization(Evaluator[Continues]):
    """Rounds the weights of every linear layer to few bits and measures the forget items again.

    It undoes unlearning that changed weights by less than half a step of the grid. Rounding is symmetric, to the
    nearest code, with one scale per output channel, of each expert where there are experts; activations, embeddings
    (with an output layer tied to them), routers, norms and biases are not rounded.

    Args:
        bits: bits per code, each from 2 to 8.
        items: at most this many forget items, drawn by the seed; null takes all.
        batch_size: items per forward pass; does not change the result.

    Reference:
        Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, 2025. arXiv:2410.16454
    """

    bits: list[int] = field(default_factory=lambda: [8, 4])
    items: PositiveInt | None = 100
    batch_size: PositiveInt = 16

    metrics: ClassVar = (ATTACK, CODES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bits or not all(2 <= b <= 8 for b in self.bits) or len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits is {self.bits}; it must be different numbers from 2 to 8")

    @override
    def __call__(self, evaluation: Evaluation[Continues]) -> EvaluationResult:
        ids = attacked(evaluation, self.items)
        found = EvaluationResult()
        for bits in self.bits:
            before = all_codes(evaluation.models["target"], bits)
            for subject, model in evaluation.models.items():
                scores = scores_of(evaluation, quantized(model, bits), ids, self.batch_size)
                found.records.extend(attack_records(evaluation, ATTACK, subject, ids, scores, f"{bits} bit"))
                if subject != "target" and (share := codes_changed(before, all_codes(model, bits))):
                    about = {"budget": f"{bits} bit"}
                    found.records.append(evaluation.record(CODES, subject, "", share[0], n=share[1], about=about))
        return found


def scales(weight: Tensor, bits: int, channel: int = 0) -> Tensor:
    """Return the scale of each output channel, max |w| / (2^(bits - 1) - 1), broadcastable to the weight.

    Args:
        weight: of two axes, or (E, ...) of experts, which have scales of their own.
        bits: per code.
        channel: axis of the output channels.
    """
    others = [axis for axis in range(weight.ndim - 2, weight.ndim) if axis != channel]
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))  # a rounded scale could overflow the codes
    largest: Tensor = wide.abs().amax(dim=others, keepdim=True)
    return torch.div(largest, 2 ** (bits - 1) - 1)


def codes(weight: Tensor, bits: int, channel: int = 0) -> Tensor:
    """Return round(w / scale), whole numbers from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1; 0 in a channel of zeros."""
    scale = scales(weight, bits, channel)
    return torch.where(scale > 0, weight / scale, 0).round().to(torch.int8)  # bits <= 8


def linear_weights(model: Model) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Yield (name, weight, axis of its output channels) of linear layers and experts, except tied to embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        turned = type(module).__name__ == "Conv1D"  # GPT-2's linear layer stores its weight transposed
        weight = module.weight if isinstance(module, nn.Linear) or turned else None
        if isinstance(weight, nn.Parameter) and id(weight) not in embeddings:
            yield name, weight, int(turned)
    yield from expert_weights(model)


@torch.no_grad()
def quantized(model: Quantized, bits: int) -> Quantized:
    """Return a copy of a model whose linear layers hold only scale * code."""
    copy = deepcopy(model)
    for _, weight, channel in linear_weights(copy):
        weight.copy_(scales(weight, bits, channel) * codes(weight, bits, channel))
    return copy


@torch.no_grad()
def all_codes(model: Model, bits: int) -> dict[str, Tensor]:
    """Return the codes of every linear layer by the weight's name, on the CPU."""
    return {name: codes(weight, bits, axis).cpu() for name, weight, axis in linear_weights(model)}


def codes_changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[float, int] | None:
    """Return the share of codes that differ, and their number; None for models of other shapes."""
    if not before or {n: c.shape for n, c in before.items()} != {n: c.shape for n, c in after.items()}:
        return None
    changed = sum(int((old != after[name]).sum()) for name, old in before.items())
    total = sum(old.numel() for old in before.values())
    return changed / total, total
