"""A diffusion model on the meta device, and the memory of its backward pass."""

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from unlearn.data.base import Split
from unlearn.models.base import MetaModel
from unlearn.models.diffusion.widths import empty_condition
from unlearn.models.diffusion.wrapper import Diffusion

WORDS = (
    "what one pass of the denoiser keeps where all of it is trained, counted per layer without weights; attention's "
    "square is never held; a term that passes twice with gradient asks for twice as much; a cast copy of the weights "
    "in mixed precision"
)


def meta_model(model: Diffusion, precision: str) -> MetaModel:
    """Return a model on the meta device with an estimate of its activations in steps of this precision."""
    mixed = precision == "bf16-mixed"
    width = 2 if mixed else 8 if precision == "64-true" else 4
    cast = 2 * sum(parameter.numel() for parameter in model.denoiser.parameters()) if mixed else 0
    of_an_item = cache(partial(kept_numbers, model))  # a pass that takes seconds, and only where it is asked for

    def needed(split: Split, items: int) -> int:
        return width * min(items, len(split)) * of_an_item() + cast

    return MetaModel(model, needed, WORDS)


def kept_numbers(model: Diffusion) -> int:
    """Return how many numbers one pass of the denoiser keeps for the backward pass of one item."""
    parameters = {id(parameter) for parameter in model.parameters()}
    empty = partial(torch.empty, device="meta")
    x = empty(1, *model.latent_shape, requires_grad=True)
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    condition = empty_condition(model.denoiser, model.text)
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        owner = value._base if value._base is not None else value
        if id(owner) not in parameters and value.is_floating_point():
            kept.setdefault(id(owner), owner)  # also keeps it alive, so that no other gets its number
        return value

    with saved_tensors_hooks(keep, lambda value: value), _FusedAttention():
        model.raw(x, t, condition)
    return sum(value.numel() for value in kept.values())


class _Attention(torch.autograd.Function):
    """Attention's shapes as a fused kernel has them: it keeps queries, keys, values and the result."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _FusedAttention(TorchFunctionMode):
    """Replaces attention by ``_Attention``: on the meta device it would hold its (L, L) matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = (*args, *(given[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            fused: Any = _Attention.apply
            return fused(query, key, value)
        return func(*args, **given)
