"""Ranks: who does which items, and how the parts come together in the same order on every rank."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's rank, 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks, 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Return the rows (n_r, ...) of every rank, in rank order; n_r may differ and may be 0."""
    if world_size() == 1:
        return [rows]
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(size.item() for size in sizes))
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.contiguous())
    return [part[: int(size.item())] for part, size in zip(parts, sizes, strict=True)]


@torch.no_grad()
def map_ids(function: Callable[[Tensor], Tensor], ids: Tensor, batch_size: int = 256) -> Tensor:
    """Apply ``function`` (ids (b,) -> rows (b, ...)) to all ids, shared among ranks; rows in the order of ids.

    Every rank gets the same full answer. ``ids`` must hold at least one id; a rank whose share is empty works on
    the first id and its answer is dropped.
    """
    mine = ids[rank() :: world_size()]
    worked = mine if len(mine) else ids[:1]
    rows = torch.cat([function(part) for part in worked.split(batch_size)])[: len(mine)]
    parts = gather_rows(rows)
    result = rows.new_empty(len(ids), *rows.shape[1:])
    for index, part in enumerate(parts):
        result[index :: world_size()] = part
    return result
