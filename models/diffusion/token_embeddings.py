"""New words or classes for a model: extra embedding rows while a context lasts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearn.models.capabilities import Model


class _Extended(nn.Module):
    """An embedding table in which the ids -1 ... -K look up extra rows."""

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings of ids (...), (..., D)."""
        new = self.rows.to(self.table.weight.dtype)[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], new, self.table(ids.clamp(min=0)))


@contextmanager
def new_words(model: Model, tables: Sequence[nn.Embedding], rows: Sequence[Tensor]) -> Iterator[None]:
    """Let the ids -1 ... -K stand for new words (or classes) in the conditions of a model.

    The model's own embeddings are unchanged, and it treats the new words like any other. Negative ids are unused
    otherwise, and text encoders that find the end of a prompt by its highest id still find it.

    Args:
        model: that holds the tables.
        tables: the embedding tables to extend (``Denoises.tables``).
        rows: the new embeddings, (K, D) for each table; they may carry a gradient.
    """
    places = {id(module): name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    held = []
    for table, new in zip(tables, rows, strict=True):
        parent, _, own = places[id(table)].rpartition(".")
        held.append((model.get_submodule(parent), own, table))
        setattr(model.get_submodule(parent), own, _Extended(table, new))
    try:
        yield
    finally:
        for module, own, table in held:
            setattr(module, own, table)
