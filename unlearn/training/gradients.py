"""Losses in, gradients out, summed over ranks: the one way in which any network here gets its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearn.core.distributed import world_size

_BUCKET_BYTES = 25 * 2**20


LazyLoss = Callable[[], Tensor | None]
"""Makes the loss of one micro-batch, a scalar; None where this rank has nothing (it still takes part)."""


def fresh_gradients(losses: Sequence[LazyLoss], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of the sum of all losses of all ranks, in ``p.grad``; what stood there is dropped.

    Args:
        losses: made one by one, so that only one graph lives at a time.
        parameters: what the gradient is taken for. A parameter that no loss reaches gets zeros.

    While the last loss runs backward, gradients that are complete already travel, bucket by bucket.
    """
    for parameter in parameters:
        parameter.grad = None
    for index, make in enumerate(losses):
        loss = make()
        if index == len(losses) - 1 and world_size() > 1:
            _Buckets(parameters).run(loss)
        elif loss is not None:
            torch.autograd.backward(loss)
    return [_dense(parameter) for parameter in parameters]


def add_gradient(make: LazyLoss, parameters: Sequence[nn.Parameter], note: Callable[[Tensor, Tensor], None]) -> None:
    """Add the gradient of one more loss of this rank alone to ``p.grad``.

    Args:
        make: makes the loss.
        parameters: each has its ``p.grad``.
        note: called with (p.grad as it stood, what is added) of each parameter that the loss reaches.
    """

    def hook(parameter: nn.Parameter) -> Callable[[Tensor], None]:
        return lambda added: note(_dense(parameter), added)

    hooks = [parameter.register_hook(hook(parameter)) for parameter in parameters]
    try:
        loss = make()
        if loss is not None:
            torch.autograd.backward(loss)
    finally:
        for each in hooks:
            each.remove()


@contextmanager
def watched(parameters: Mapping[str, nn.Parameter]) -> Iterator[set[str]]:
    """Collect, while the body runs, the names of the parameters that a backward pass reaches."""
    reached: set[str] = set()

    def note(name: str) -> Callable[[Tensor], None]:
        return lambda _: reached.add(name)

    hooks = [p.register_post_accumulate_grad_hook(note(name)) for name, p in parameters.items()]
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()


def take_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Detach ``p.grad`` from the parameters, leaving None, and return it."""
    gradients = [_dense(parameter) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all tensors, a scalar."""
    norms: tuple[Tensor, ...] = torch._foreach_norm(list(gradients))
    return torch.stack(norms).square().sum().sqrt()


def _dense(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _Buckets:
    """Sum gradients over ranks in buckets of about 25 MB, in one order on every rank, during backward."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.buckets: list[list[nn.Parameter]] = [[]]
        size = 0
        for parameter in reversed(parameters):  # backward reaches the last layers first
            last = self.buckets[-1]
            if last and (size + parameter.nbytes > _BUCKET_BYTES or last[0].dtype != parameter.dtype):
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(parameter)
            size += parameter.nbytes
        self.missing = [len(bucket) for bucket in self.buckets]
        self.home = {parameter: index for index, bucket in enumerate(self.buckets) for parameter in bucket}
        self.sent: list[tuple[Tensor, Any]] = []

    def run(self, loss: Tensor | None) -> None:
        """Run the backward pass of ``loss``, then wait until every bucket holds the sum over ranks."""
        hooks = [parameter.register_post_accumulate_grad_hook(self._ready) for parameter in self.home]
        try:
            if loss is not None:
                torch.autograd.backward(loss)
        finally:
            for hook in hooks:
                hook.remove()
        while len(self.sent) < len(self.buckets):
            self._send()
        for bucket, (flat, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                _dense(parameter).copy_(part.view_as(parameter))

    def _ready(self, parameter: Tensor) -> None:
        self.missing[self.home[parameter]] -= 1  # type: ignore[index]
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self.sent)]
        flat = torch.cat([_dense(parameter).reshape(-1) for parameter in bucket])
        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))
