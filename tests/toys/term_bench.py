"""One term of a loss alone: prepared on the target, then evaluated on a model, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unlearn.core.distributed import map_ids
from unlearn.core.randomness import Randomness
from unlearn.core.reference_cache import ReferenceCache
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Batch, Split
from unlearn.objectives.base import Context, Objective, Values


class TermBench:
    """A term, its model and its data.

    Args:
        folder: for the target's values.
        objective: the term.
        model: to be trained; it starts as the target.
        target: the same model, frozen; None where whoever asks for it must fail.
        splits: the data by split name.
        split: which the term reads.
        prepare: whether the term is prepared at once.
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        model: Any,
        target: Any,
        splits: Mapping[str, Split],
        split: str = "forget",
        prepare: bool = True,
    ) -> None:
        self.objective, self.model, self.target, self.splits, self.split = objective, model, target, splits, split
        self.state: dict[str, Any] = {}
        self.reference_cache = ReferenceCache(folder)
        self.reference = ReferenceModel(lambda: self.target)
        if prepare:
            objective.prepare(self.model, self.context())

    def context(self, step: int = 0, **changed: Any) -> Context:
        given: dict[str, Any] = {
            "step": step,
            "randomness": Randomness(0, "bench", step),
            "splits": self.splits,
            "state": self.state,
            "reference": self.reference,
            "map_ids": map_ids,
            "device": torch.device("cpu"),
            "reference_cache": self.reference_cache,
            "split": self.split,
        }
        return Context(**given | changed)

    def batch(self, rows: Any = slice(None)) -> Batch:
        return self.splits[self.split].batch(self.splits[self.split].ids[rows])

    def values(self, rows: Any = slice(None), step: int = 0, batch: Batch | None = None) -> Values:
        return self.objective(self.model, self.batch(rows) if batch is None else batch, self.context(step))
