"""Divides work among ranks and gathers the results in the same order on every rank."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unlearn.core.errors import RecipeError

Item = TypeVar("Item")


def rank() -> int:
    """Return this process's rank, 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks, 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_objects(item: Item) -> list[Item]:
    """Return every rank's item, in rank order."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Return the rows (n_r, ...) of every rank, in rank order; n_r may differ.

    A rank with nothing passes an empty tensor (0,), whatever the others' row shape.
    """
    if world_size() == 1:
        return [rows]
    shapes = gather_objects(tuple(rows.shape))
    row_shape = max((shape[1:] for shape in shapes if shape[0]), key=len, default=rows.shape[1:])
    padded = rows.new_zeros(max(shape[0] for shape in shapes), *row_shape)
    padded[: len(rows)] = rows.reshape(len(rows), *row_shape)
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded.contiguous())
    return [part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


@torch.no_grad()
def map_ids(function: Callable[[Tensor], Tensor], ids: Tensor, batch_size: int = 256) -> Tensor:
    """Apply ``function`` (ids (b,) -> rows (b, ...)) to all ids, divided among ranks; rows in the order of ids.

    Every rank gets all rows. ``ids`` must hold at least one id; a rank whose share is empty computes the first id, so
    that it knows the rows' shape, and drops the result.
    """
    mine = ids[rank() :: world_size()]  # every n-th id, so that the shares differ by one at most
    worked = mine if len(mine) else ids[:1]
    rows = torch.cat([function(part) for part in worked.split(batch_size)])[: len(mine)]
    parts = gather_rows(rows)
    result = rows.new_empty(len(ids), *rows.shape[1:])
    for index, part in enumerate(parts):
        result[index :: world_size()] = part
    return result


def barrier() -> None:
    """Wait until every rank gets here."""
    if world_size() > 1:
        dist.barrier()


def launch(devices: int, accelerator: str) -> None:
    """Start the other ranks on the same command line, once; torchrun and SLURM start them by themselves.

    Raises:
        RecipeError: several devices are asked for where the command line cannot be run again.
    """
    if devices == 1 or dist.is_initialized():
        return
    again = getattr(sys.modules["__main__"], "__spec__", None) is not None or Path(sys.argv[0]).stem == "unlearn"
    if not again and "LOCAL_RANK" not in os.environ:
        raise RecipeError(
            f"trainer.devices={devices} works from the command line, which each rank runs again. "
            "Type python -m unlearn.run ... trainer.devices=N, or start your script with torchrun."
        )
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"  # small values are exchanged between CPUs
    strategy = DDPStrategy(process_group_backend=backend)
    Fabric(accelerator=accelerator, devices=devices, strategy=strategy).launch()
