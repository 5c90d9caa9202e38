"""Float types of a model's tensors, which steps in a wider type change for a while."""

import copy
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    named = chain(model.named_parameters(), model.named_buffers())
    return ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def float_types(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the type of each floating-point parameter and buffer by its name."""
    return {name: tensor.dtype for name, tensor in _floats(model)}


@torch.no_grad()
def round_to(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Round, in place, each tensor to the values that the type of its name can hold; its own type stays."""
    for name, tensor in _floats(model):
        if name in types:
            tensor.copy_(tensor.to(types[name]))


def in_types(model: M, types: Mapping[str, torch.dtype]) -> M:
    """Return a model whose tensors have the types of their names: a copy, or the model itself where they have them."""
    if all(tensor.dtype == types.get(name, tensor.dtype) for name, tensor in _floats(model)):
        return model
    copied = copy.deepcopy(model)
    cast_back(copied, types)
    return copied


def cast_back(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Give each tensor the type of its name again, in place; one of another name gets no wider type than those."""
    widest = max(types.values(), key=lambda kind: kind.itemsize, default=torch.float64)
    for name, tensor in _floats(model):
        own = types.get(name, min(tensor.dtype, widest, key=lambda kind: kind.itemsize))
        if tensor.dtype != own:
            gradient, tensor.grad = tensor.grad, None
            tensor.data = tensor.data.to(own)
            tensor.grad = None if gradient is None else gradient.to(own)
