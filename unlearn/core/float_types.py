"""Float types of a model's tensors, which steps in a wider type change for a while."""

from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    named = chain(model.named_parameters(), model.named_buffers())
    return ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def float_types(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the type of each floating-point parameter and buffer by its name."""
    return {name: tensor.dtype for name, tensor in _floats(model)}


def cast_back(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Give each tensor the type of its name again, in place; one of another name gets no wider type than those."""
    widest = max(types.values(), key=lambda kind: kind.itemsize, default=torch.float64)
    for name, tensor in _floats(model):
        own = types.get(name, min(tensor.dtype, widest, key=lambda kind: kind.itemsize))
        if tensor.dtype != own:
            gradient, tensor.grad = tensor.grad, None
            tensor.data = tensor.data.to(own)
            tensor.grad = None if gradient is None else gradient.to(own)
