"""Long passages, cut into chunks of a model's tokens."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from math import ceil

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.data.text import Encoder, TextDataset, TextItem

ROOM = 0.95
"""Pieces aim at this share of a chunk, because tokens are spread unevenly over a text."""


class PackedDataset(TextDataset):
    """Text items whose passages are cut into chunks once the model's tokenizer is known, so that no text is lost.

    Args:
        items: as in TextDataset.
        is_test: as in TextDataset.
        packed: attributes of the passages that are cut; passages of other attributes stay as they are.
        chunk_tokens: most tokens per chunk, and never more than the model's ``max_length``. Adjacent passages of the
            same label and attributes are joined by a blank line before they are cut. None joins nothing, and cuts
            only what is longer than ``max_length``.
    """

    def __init__(
        self, items: Sequence[TextItem], is_test: Tensor, packed: Collection[str], chunk_tokens: int | None = None
    ) -> None:
        super().__init__(items, is_test)
        self.packed = frozenset(packed)
        self.chunk_tokens = chunk_tokens

    @override
    def encoded_by(self, encoder: Encoder) -> TextDataset:
        """Return the items for a model, in chunks; ids then count chunks."""
        limit = min(self.chunk_tokens or encoder.max_length, encoder.max_length)
        items: list[TextItem] = []
        is_test: list[bool] = []
        for whole, out in self._joined():
            parts = cut_text(whole.answer, limit, encoder.length) if self._is_packed(whole) else [whole.answer]
            cluster = whole.cluster or whole.label or (f"passage {len(items)}" if len(parts) > 1 else "")
            for number, part in enumerate(parts, 1):
                goes_on = whole.goes_on or number < len(parts)
                items.append(replace(whole, answer=part, goes_on=goes_on, cluster=cluster))
                is_test.append(out)
        read = TextDataset(items, torch.tensor(is_test, dtype=torch.bool), encoder=encoder)
        read.in_context = self.in_context
        return read

    def _joined(self) -> Iterator[tuple[TextItem, bool]]:
        """Yield the items and their entries of ``is_test``, adjacent passages joined."""
        rows = zip(self.items, self.is_test.tolist(), range(len(self)), strict=True)
        for _, group in groupby(rows, key=self._key):
            together = list(group)
            first, out, _ = together[0]
            text = "\n\n".join(item.answer for item, _, _ in together)
            yield replace(first, answer=text), out

    def _key(self, row: tuple[TextItem, bool, int]) -> tuple[object, ...]:
        item, out, place = row
        if self.chunk_tokens is None or not self._is_packed(item):
            return (place,)
        return ("joined", item.label, item.attributes, out)

    def _is_packed(self, item: TextItem) -> bool:
        return not item.question and not item.forms and bool(self.packed & item.attributes)


def cut_text(text: str, limit: int, length: Callable[[str], int]) -> list[str]:
    """Cut a text at blanks into nearly equal pieces of at most ``limit`` tokens; joined, they give the text again.

    Args:
        text: the text to cut.
        limit: most tokens per piece; a single character may have more.
        length: text -> tokens.
    """
    tokens = length(text)
    if tokens <= limit or len(text) == 1:
        return [text]
    count = ceil(tokens / (ROOM * limit))
    near = min(100, len(text) // count // 2)
    edges = [0, *(_blank(text, index * len(text) // count, near) for index in range(1, count)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges) if end > start]
    return [part for piece in pieces for part in cut_text(piece, limit, length)]  # a dense piece may still be too long


def _blank(text: str, place: int, near: int) -> int:
    """Return the place of the last blank within ``near`` characters before a place, else the place itself."""
    found = max(text.rfind(mark, place - near, place) for mark in (" ", "\n"))
    return place if found < 0 else found
