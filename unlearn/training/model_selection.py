"""Keeps the weights of the best step: measured during the run, on the half of forget that the figures do not show."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning import Callback, Trainer
from torch import Tensor

from unlearn.config.schema import Gate, Select
from unlearn.core.errors import RecipeError
from unlearn.core.records import Record, find
from unlearn.data.base import Split
from unlearn.training.module import UnlearningModule

Measure = Callable[[Mapping[str, Any], Mapping[str, Split]], list[Record]]
"""Runs the evaluator: (subject -> model, splits) -> records."""


class KeepBest(Callback):
    """Measure every few steps; keep the best weights among the steps that meet the limit.

    Without any step that meets it, the one that comes nearest is kept.

    Args:
        select: what counts as best, and the limit.
        measure: runs the evaluator.
        splits: all splits, forget being its tuning half.
        fixed: subject -> loader of the models that do not move and that the rule compares with.
        say: prints a line.
    """

    def __init__(
        self,
        select: Select,
        measure: Measure,
        splits: Mapping[str, Split],
        fixed: Mapping[str, Callable[[], Any]],
        say: Callable[[str], None],
    ) -> None:
        self.select, self.measure, self.splits, self.fixed, self.say = select, measure, splits, fixed, say
        self.known: list[Record] | None = None
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when it is due; ask for the end of the run when the limit was missed too often."""
        step = module.step_count
        if step <= 0 or (step % self.select.every and step < module.primary.optim.steps):
            return
        began = time.monotonic()
        records = self.compared() + self.measure({"unlearned": module.model}, self.splits)
        distance, excess = self.judge(records)
        best = module.best
        worse_limit = best.get("excess", math.inf)
        better = excess < worse_limit if max(excess, worse_limit) > 0 else distance < best["distance"]
        if better:
            module.best = {**best, "step": module.step_count, "distance": distance, "excess": excess}
            module.best["parameters"] = kept(module)
        module.best["missed"] = module.best.get("missed", 0) + 1 if excess > 0 else 0
        verdict = "meets the limit" if excess <= 0 else f"misses the limit by {excess:.3g}"
        found = find(records, self.select.metric, split="forget", **self.select.about)
        figure = "–" if found is None else f"{found.value:.4f}"
        self.say(f"step {module.step_count}: {self.select.metric} {figure}, {verdict}{', best so far' * better}")
        if self.select.patience is not None and module.best["missed"] >= self.select.patience:
            module.goal = "select"
        self.seconds += time.monotonic() - began

    def compared(self) -> list[Record]:
        """Return the records of the models that do not move, measured once."""
        if self.known is None:
            self.known = []
            for subject, load in self.fixed.items():  # one at a time: they need not be in memory together
                self.known += self.measure({subject: load()}, self.splits)
        return self.known

    def judge(self, records: Sequence[Record]) -> tuple[float, float]:
        """Return (distance from the aim, how far the limit is missed), both better when smaller; 0 meets the limit."""
        value = self._value(records, "unlearned")
        if self.select.aim == "retrained":
            distance = abs(value - self._value(records, "retrained"))
        else:
            distance = value if self.select.aim == "lower" else -value
        self._refuse_unmeasured(records)
        excess = _excess(self.select.limit, records) if self.select.limit else 0.0
        return (math.inf if math.isnan(distance) else distance), (math.inf if math.isnan(excess) else excess)

    def _refuse_unmeasured(self, records: Sequence[Record]) -> None:
        """Refuse a rule about figures that the evaluator does not give; a figure that is nan only misses the limit."""
        limit = self.select.limit
        asked = [(self.select.metric, "forget", self.select.about)]
        asked += [(limit.metric, limit.split, limit.about)] if limit else []
        for metric, split, about in asked:
            if find(records, metric, split=split or None, **about) is None:
                known = sorted({f"{r.metric} on {r.split}" if r.split else r.metric for r in records})
                where = f"{metric} on {split}" if split else metric
                raise RecipeError(
                    f"select: evaluate.{self.select.evaluator} gives no {where}"
                    f"{' about ' + str(about) if about else ''}. It gives: {', '.join(known) or 'nothing'}."
                )

    def _value(self, records: Sequence[Record], subject: str) -> float:
        found = find(records, self.select.metric, subject, "forget", **self.select.about)
        return math.nan if found is None else found.value


def kept(module: UnlearningModule) -> dict[str, Tensor]:
    """Return a copy of the moving weights, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in module.primary.parameters.items()}


def _excess(limit: Gate, records: Sequence[Record]) -> float:
    """Return by how much a figure misses its limit; 0 where it meets it, nan where it was not measured."""
    found = find(records, limit.metric, limit.subject, limit.split or None, **limit.about)
    base = find(records, limit.metric, limit.minus, limit.split or None, **limit.about) if limit.minus else None
    if found is None or (limit.minus and base is None):
        return math.nan
    value = found.value - (base.value if base else 0.0)
    low = limit.min - value if limit.min is not None else 0.0
    high = value - limit.max if limit.max is not None else 0.0
    return max(0.0, low, high)
