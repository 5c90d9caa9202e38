"""Buckets of gradients: the sum is that of plain backward, and few copies are alive at a time."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from unlearn.training import gradients


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank, in which a sum over ranks is the rank's own value."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_buckets_are_freed_as_they_land(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve layers, a bucket each; a thirteenth that the loss does not reach gets zeros."""
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 16 * 16 * 4)
    layers = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(12)))
    idle = nn.Parameter(torch.ones(3))
    parameters = [*layers.parameters(), idle]
    reduce, flats, alive = dist.all_reduce, [], []

    def counted(flat: torch.Tensor, **settings: Any) -> Any:
        flats.append(weakref.ref(flat))
        alive.append(sum(each() is not None for each in flats))
        return reduce(flat, **settings)

    monkeypatch.setattr(dist, "all_reduce", counted)
    loss = layers(torch.linspace(-1, 1, 64).view(4, 16)).square().sum()
    wanted = torch.autograd.grad(loss, [*layers.parameters()], retain_graph=True)
    gradients._Buckets(parameters).run(loss)
    assert len(flats) == 13
    assert max(alive) <= gradients.IN_FLIGHT and not any(each() is not None for each in flats)
    assert all(torch.equal(p.grad, g) for p, g in zip(layers.parameters(), wanted, strict=True))  # type: ignore[arg-type]
    assert torch.equal(idle.grad, torch.zeros(3))  # type: ignore[arg-type]
