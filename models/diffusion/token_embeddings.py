"""New words or classes for a model: rows beside its embedding tables, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearn.models.capabilities import Model


class _Extended(nn.Module):
    """A table in which -1 ... -K find rows of their own."""

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings of ids (...), (..., D)."""
        new = self.rows.to(self.table.weight.dtype)[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], new, self.table(ids.clamp(min=0)))


@contextmanager
def new_words(model: Model, tables: Sequence[nn.Embedding], rows: Sequence[Tensor]) -> Iterator[None]:
    """Let -1 ... -K stand for new words (or classes) in what a model is told.

    Nothing that the model knows changes, and whatever it does with words it does with the new ones too. Ids below zero
    are no one's: text encoders that find the end of a prompt as its highest id find it as before.

    Args:
        model: that holds the tables.
        tables: in which words are looked up (``Denoises.tables``).
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
