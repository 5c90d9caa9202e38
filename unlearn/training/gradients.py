"""Computes gradients summed over ranks, for the model and for every auxiliary network."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearn.core.distributed import world_size

BUCKET_BYTES = 25 * 2**20
"""Largest bucket of gradients that is summed over ranks at once (a larger parameter is a bucket of its own)."""

IN_FLIGHT = 2
"""Number of buckets that are reduced at the same time, while the backward pass goes on."""

LazyLoss = Callable[[], Tensor | None]
"""Computes the loss of one micro-batch, a scalar; None if this rank has no items (it still takes part)."""


def fresh_gradients(losses: Sequence[LazyLoss], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of the sum of all losses of all ranks; it replaces ``p.grad``.

    Args:
        losses: computed one by one, so that only one graph is in memory at a time.
        parameters: with respect to which the gradient is taken. A parameter that no loss reaches gets zeros.

    During the backward pass of the last loss, complete buckets of gradients are already being reduced.
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
        make: computes the loss.
        parameters: each has its ``p.grad``.
        note: called with (p.grad before, what is added) of each parameter that the loss reaches.
    """

    # a tensor hook sees only what is added, before PyTorch accumulates it into p.grad
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
    """Collect the names of the parameters that a backward pass inside the ``with`` block reaches."""
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
    """Detach and return the gradients, setting ``p.grad`` to None."""
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
    """Sums gradients over ranks in buckets of about 25 MB, in one order on every rank, during backward.

    At most ``IN_FLIGHT`` buckets are reduced at a time, so that the copies take the memory of a few buckets and not of
    all gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.buckets: list[list[nn.Parameter]] = [[]]
        size = 0
        for parameter in reversed(parameters):  # backward reaches the last layers first
            last = self.buckets[-1]
            if last and (size + parameter.nbytes > BUCKET_BYTES or last[0].dtype != parameter.dtype):
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(parameter)
            size += parameter.nbytes
        self.missing = [len(bucket) for bucket in self.buckets]
        self.home = {parameter: index for index, bucket in enumerate(self.buckets) for parameter in bucket}
        self.sent = 0
        self.flying: deque[tuple[list[nn.Parameter], Tensor, Any]] = deque()

    def run(self, loss: Tensor | None) -> None:
        """Run the backward pass of ``loss``, then wait until every gradient is the sum over ranks."""
        hooks = [parameter.register_post_accumulate_grad_hook(self._ready) for parameter in self.home]
        try:
            if loss is not None:
                torch.autograd.backward(loss)
        finally:
            for hook in hooks:
                hook.remove()
        while self.sent < len(self.buckets):  # buckets with a parameter that this rank's loss does not reach
            self._send()
        while self.flying:
            self._land()

    def _ready(self, parameter: Tensor) -> None:
        self.missing[self.home[parameter]] -= 1  # type: ignore[index]
        # a complete bucket waits for those before it: collectives must start in the same order on every rank
        while self.sent < len(self.buckets) and self.missing[self.sent] == 0:
            self._send()

    def _send(self) -> None:
        if len(self.flying) == IN_FLIGHT:
            self._land()
        bucket = self.buckets[self.sent]
        flat = torch.cat([_dense(parameter).reshape(-1) for parameter in bucket])
        self.flying.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        self.sent += 1

    @torch.no_grad()
    def _land(self) -> None:
        """Wait for the oldest bucket and copy it into its gradients; nothing refers to it afterwards."""
        bucket, flat, work = self.flying.popleft()
        work.wait()
        parts = flat.split([parameter.numel() for parameter in bucket])
        for parameter, part in zip(bucket, parts, strict=True):
            _dense(parameter).copy_(part.view_as(parameter))
