"""Caches values of the frozen target, computed before the first step, so that no second model stays in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from unlearn.core.distributed import barrier, gather_objects, rank, world_size
from unlearn.core.errors import RecipeError
from unlearn.core.files import write_bytes

Made = TypeVar("Made")
Compute = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps ids (b,) to rows (n, ...) of all of them, in their order, and the number of rows of each, (b,)."""


class ReferenceCache:
    """Stores rows per item, in one file per name; a resumed run reads the files of its first part.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, tuple[Tensor, Tensor, dict[int, int]]] = {}
        self._made: dict[str, Any] = {}

    @torch.no_grad()
    def put(self, name: str, ids: Tensor, compute: Compute, batch_size: int = 16) -> None:
        """Compute the rows of ``ids`` (N,), divided among ranks, unless the file exists."""
        if self._path(name).is_file():
            return
        mine = ids[rank() :: world_size()]
        parts = [compute(part) for part in mine.split(batch_size) if len(part)]
        rows = [row.cpu() for values, counts in parts for row in values.split(counts.tolist())]
        table = {
            int(item): row
            for share in gather_objects(dict(zip(mine.tolist(), rows, strict=True)))
            for item, row in share.items()
        }
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = [table[item] for item in ids.tolist()]
            counts = torch.tensor([len(row) for row in found])
            content = save({"ids": ids.cpu().contiguous(), "counts": counts, "rows": torch.cat(found)})
            write_bytes(self._path(name), content)  # whole or not at all: a resumed run trusts a file that is there
        barrier()  # the others must not read before rank 0 has written

    def get(self, name: str, ids: Tensor) -> Tensor:
        """Return the rows of ``ids``, concatenated, on the device of ``ids``."""
        if name not in self._open:
            try:
                content = load_file(self._path(name))
            except (OSError, SafetensorError) as error:
                raise RecipeError(
                    f"{self._path(name)}, which holds values of the target, cannot be read. "
                    "Delete the run's folder and start the recipe again."
                ) from error
            ends = F.pad(content["counts"].cumsum(0), (1, 0))  # item i has the rows ends[i] ... ends[i + 1]
            place = {item: index for index, item in enumerate(content["ids"].tolist())}
            self._open[name] = (content["rows"], ends, place)
        rows, ends, place = self._open[name]
        found = [place[item] for item in ids.tolist()]
        pieces = [rows[ends[index] : ends[index + 1]] for index in found]
        return (torch.cat(pieces) if pieces else rows[:0]).to(ids.device)

    def drop(self, name: str) -> None:
        """Free the memory of rows that are no longer read; the file stays."""
        self._open.pop(name, None)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """Call ``make`` once per ``name`` and return its result every time; it is not in the checkpoint."""
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
