"""Model selection: keeps the weights of the best step, measured on the half of forget that no figure uses."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor
from typing_extensions import override

from unlearn.config.schema import Gate, Select
from unlearn.core.errors import RecipeError
from unlearn.core.records import Record, find
from unlearn.data.base import Split
from unlearn.training.checkpoint import restoring
from unlearn.training.module import UnlearningModule

Measure = Callable[[Mapping[str, Any], Mapping[str, Split]], list[Record]]
"""Runs the evaluator: (subject -> model, splits) -> records."""


class ModelSelection(Callback):
    """Measures every few steps and keeps the best weights among the steps that meet the limit.

    If no step meets it, it keeps the weights of the step that comes closest.

    Args:
        select: the criterion and the limit.
        measure: runs the evaluator.
        splits: all splits, with the tuning half of forget.
        fixed: subject -> loader of the frozen models to compare with.
        say: prints a line.

    Attributes:
        best: step, distance, excess and parameters of the best step so far; empty before the first measurement.
        missed: measurements in a row that missed the limit.
        seconds: spent on measuring, in this process.
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
        self.best: dict[str, Any] = {}
        self.missed = 0
        self.seconds = 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "missed": self.missed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self.best, self.missed = dict(best), int(state_dict["missed"])
        if best:
            self.best |= {"step": int(best["step"]), "parameters": dict(best["parameters"])}
            self.best |= {key: float(best[key]) for key in ("distance", "excess")}

    @override
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        trainer.should_stop |= self._exhausted()  # the run may have been cut off after its last measurement

    @override
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = module.step_count
        if step <= 0 or (step % self.select.every and step < module.primary.optim.steps):
            return
        began = time.monotonic()
        records = self.compared() + self.measure({"unlearned": module.model}, self.splits)
        distance, excess = self.judge(records)
        nearest = self.best.get("excess", math.inf)
        # among steps that meet the limit the distance decides, otherwise how far the limit is missed
        better = excess < nearest if max(excess, nearest) > 0 else distance < self.best["distance"]
        if better:
            weights = trained_weights(module)
            self.best = {"step": step, "distance": distance, "excess": excess, "parameters": weights}
        self.missed = self.missed + 1 if excess > 0 else 0
        verdict = "meets the limit" if excess <= 0 else f"misses the limit by {excess:.3g}"
        found = find(records, self.select.metric, split="forget", **self.select.about)
        figure = "–" if found is None else f"{found.value:.4f}"
        self.say(f"step {step}: {self.select.metric} {figure}, {verdict}{', best so far' * better}")
        trainer.should_stop |= self._exhausted()
        self.seconds += time.monotonic() - began

    def _exhausted(self) -> bool:
        return self.select.patience is not None and self.missed >= self.select.patience

    @torch.no_grad()
    def apply(self, module: UnlearningModule) -> None:
        """Replace the module's trained weights by the best ones, if any were kept."""
        for name, value in self.best.get("parameters", {}).items():
            with restoring("of the run"):
                module.primary.parameters[name].copy_(value)

    def compared(self) -> list[Record]:
        """Return the records of the frozen models, measured once."""
        if self.known is None:
            self.known = []
            for subject, load in self.fixed.items():  # one at a time: they need not be in memory together
                self.known += self.measure({subject: load()}, self.splits)
        return self.known

    def judge(self, records: Sequence[Record]) -> tuple[float, float]:
        """Return (distance from the aim, excess over the limit): smaller is better, and excess 0 meets the limit."""
        value = self._value(records, "unlearned")
        if self.select.aim == "retrained":
            distance = abs(value - self._value(records, "retrained"))
        else:
            distance = value if self.select.aim == "lower" else -value
        self._refuse_unmeasured(records)
        excess = _excess(self.select.limit, records) if self.select.limit else 0.0
        return (math.inf if math.isnan(distance) else distance), (math.inf if math.isnan(excess) else excess)

    def _refuse_unmeasured(self, records: Sequence[Record]) -> None:
        """Raise a RecipeError if the evaluator does not give a figure; a figure that is nan only misses the limit."""
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


def trained_weights(module: UnlearningModule) -> dict[str, Tensor]:
    """Return a copy of the trained weights, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in module.primary.parameters.items()}


def _excess(limit: Gate, records: Sequence[Record]) -> float:
    """Return by how much a figure misses its limit: 0 if it meets it, nan if it was not measured or is undefined."""
    found = find(records, limit.metric, limit.subject, limit.split or None, **limit.about)
    base = find(records, limit.metric, limit.minus, limit.split or None, **limit.about) if limit.minus else None
    if found is None or (limit.minus and base is None):
        return math.nan
    value = found.value - (base.value if base else 0.0)
    if math.isnan(value):  # max would pass over it
        return math.nan
    low = limit.min - value if limit.min is not None else 0.0
    high = value - limit.max if limit.max is not None else 0.0
    return max(0.0, low, high)
