"""TOFU: fictitious authors, whose questions and answers no pretrained model has seen."""

import os
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import NonNegativeInt, PositiveInt
from unlearn.data.base import Source
from unlearn.data.hub_datasets import hub_rows
from unlearn.data.json_lines import read_rows, text_of
from unlearn.data.text import TextDataset, TextItem
from unlearn.data.text_files import forms_of

REPOSITORY = "locuslab/TOFU"
VARIABLE = "UNLEARN_TOFU"
SPLITS = ("forget01", "forget05", "forget10")
WORLD = ("real_authors", "world_facts")
INSTEAD = f"Type data.path=FOLDER, or set {VARIABLE}=FOLDER, for a folder with full.json and forget10_perturbed.json."

Rows = list[tuple[str, dict[str, Any]]]


@dataclass
class Tofu(Source):
    """TOFU from a folder, or from the hub (``locuslab/TOFU``).

    Labels are the authors, ``author_000`` ...; attributes ``forget01``, ``forget05`` and ``forget10``, the last rows of
    the full set; by default ``split`` is forgotten. The rows of ``split`` and those of
    ``retain_perturbed.json`` have paraphrased and wrong answers. Questions about real authors and world facts are test
    items (attributes ``real_authors``, ``world_facts``), never the holdout: TOFU has none. Membership inference
    therefore needs ``holdout_authors``, which keeps authors out of training that published targets were trained on.

    Args:
        path: folder with ``full.json``, ``forget10_perturbed.json`` and so on, as JSON lines; null takes the folder
            of the environment variable UNLEARN_TOFU, or else the hub.
        split: the forget set.
        holdout_authors: number of authors never trained on (attribute ``holdout``): the last before the forget sets.
        rows_per_author: rows per author in the full set.

    Reference:
        Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024. arXiv:2401.06121
    """

    path: str | None = None
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    holdout_authors: NonNegativeInt = 0
    rows_per_author: PositiveInt = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forget = self.forget.or_label(self.split)

    @override
    def load(self) -> TextDataset:
        """Read the files or the hub. Raises RecipeError unless the forget sets are the last rows of the full set."""
        full = self._rows("full")
        perturbed = {name: rows for name in SPLITS if (rows := self._rows(f"{name}_perturbed", name == self.split))}
        for name, rows in perturbed.items():
            _check_last(name, rows, full)
        items = self._authors(full, {name: len(rows) for name, rows in perturbed.items()})
        start = len(full) - len(perturbed[self.split])
        _lay_over(items, perturbed[self.split], range(start, len(full)))
        _lay_over(items, self._rows("retain_perturbed", needed=False), range(start))
        first = len(full) - max(map(len, perturbed.values()))
        out = set(range(self._kept_out(first), first))
        held = [replace(items[i], attributes=items[i].attributes | {"holdout"}) for i in sorted(out)]
        trained = [item for place, item in enumerate(items) if place not in out]
        world = [
            TextItem(row["question"], row["answer"], name, frozenset({name, "evaluation"}), forms_of(place, row))
            for name in WORLD
            for place, row in self._rows(f"{name}_perturbed", needed=False)
        ]
        is_test = torch.arange(len(trained) + len(held) + len(world)) >= len(trained)
        return TextDataset([*trained, *held, *world], is_test)

    def _rows(self, name: str, needed: bool = True) -> Rows:
        """Return the (place, row) pairs of a set; none if it is missing and not needed."""
        path = self.path or os.environ.get(VARIABLE)
        if path is None:
            rows = list(hub_rows(REPOSITORY, name, "train", INSTEAD))
        else:
            file = Path(expanduser(path)) / f"{name}.json"
            if not file.is_file():
                if not needed:
                    return []
                raise RecipeError(f"data=tofu: {file.parent} lacks {file.name}. {INSTEAD}")
            rows = list(read_rows(file))
        for place, row in rows:
            text_of(place, row, "question")
            text_of(place, row, "answer")
        return rows

    def _authors(self, full: Rows, sizes: dict[str, int]) -> list[TextItem]:
        """Return the rows of the full set as items without forms."""
        for name, size in (("full", len(full)), *sizes.items()):
            if size % self.rows_per_author:
                raise RecipeError(
                    f"data=tofu: {name} has {size} rows, no multiple of data.rows_per_author={self.rows_per_author}."
                )
        return [
            TextItem(
                row["question"],
                row["answer"],
                f"author_{place // self.rows_per_author:03d}",
                frozenset(name for name, size in sizes.items() if place >= len(full) - size),
            )
            for place, (_, row) in enumerate(full)
        ]

    def _kept_out(self, first: int) -> int:
        """Return the first row kept out of training, given the first row of the forget sets."""
        start = first - self.holdout_authors * self.rows_per_author
        if start <= 0:
            most = first // self.rows_per_author - 1
            raise RecipeError(
                f"data.holdout_authors={self.holdout_authors} leaves no author to retain. Type {most} or less."
            )
        return start


def _check_last(name: str, rows: Rows, full: Rows) -> None:
    """Raise RecipeError unless a forget set is the last rows of the full set: forget10 == full[3600:]."""
    start = len(full) - len(rows)
    if start <= 0:
        raise RecipeError(f"data=tofu: {name} has {len(rows)} rows, the full set only {len(full)}.")
    for (place, row), (other_place, other) in zip(rows, full[start:], strict=True):
        if (row["question"], row["answer"]) != (other["question"], other["answer"]):
            raise RecipeError(
                f"{place} differs from {other_place}: {name} must be the last {len(rows)} rows of the full set. "
                "The files are of different versions of TOFU; download them all again."
            )


def _lay_over(items: list[TextItem], rows: Rows, among: range) -> None:
    """Give items the forms of rows with the same question; every row must be one of the items in ``among``."""
    places = {(items[place].question, items[place].answer): place for place in reversed(among)}  # the first of equals
    for where, row in rows:
        found = places.get((row["question"], row["answer"]))
        if found is None:
            raise RecipeError(
                f"{where}: this question is not in rows {among.start} ... {among.stop - 1} of the full set."
            )
        items[found] = replace(items[found], forms=forms_of(where, row))
