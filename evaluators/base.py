"""What an evaluator is: settings, and records and pictures about several models of the same job."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

import torch
from scipy.stats import t
from torch import Tensor, nn

from unlearn.core.randomness import Randomness
from unlearn.core.records import Picture, Record, TextTable
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import M


@dataclass(frozen=True)
class Run:
    """Facts about the run that some evaluators report.

    Attributes:
        steps: steps taken.
        seconds: wall time of the steps, preparation included; selection and evaluation are not.
        target_seconds: wall time of the target's training, None where it is unknown.
        target_origin: where the target came from: given, shipped, cached, trained, or in memory.
        peak_memory: peak memory in bytes: of the GPU during the steps, or of the process so far.
        state: the objectives' last states by term name, e.g. ``{"forget": {"reached": True}}``.
        networks: what was trained beside the model, by its name (a key).
    """

    steps: int = 0
    seconds: float = 0.0
    target_seconds: float | None = None
    target_origin: str = ""
    peak_memory: int = 0
    state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation(Generic[M]):
    """What evaluators may use.

    Attributes:
        models: subject -> wrapper; ``target`` and ``unlearned`` always, ``retrained`` where there is one.
        splits: the data by split name (forget, retain, holdout, test).
        randomness: stream of this evaluator; equal for all subjects, so that noise is shared.
        device: where the models live.
        run: facts about the run.
        seed: the run's seed, for the records.
        cache: what several evaluators share (samples, likelihoods), computed once.
    """

    models: Mapping[str, M]
    splits: Mapping[str, Split]
    randomness: Randomness
    device: torch.device
    run: Run = field(default_factory=Run)
    seed: int = 0
    cache: dict[Any, Tensor] = field(default_factory=dict)

    def batch(self, split: str, ids: Tensor, form: str = "") -> Batch:
        """Return items of a split on the device, in another form where one is named (a paraphrase, the prompt)."""
        data = self.splits[split]
        found = data.dataset.form(form, ids.cpu()) if form else data.batch(ids.cpu())
        return {key: value.to(self.device) for key, value in found.items()}


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluator returns.

    Attributes:
        records: the figures.
        pictures: for the report.
        items: rows of item-level values (subject, split, id, metric, value).
        text_tables: for the report.
        notes: sentences on what could not be measured for want of data, each beginning with the evaluator's name.
    """

    records: list[Record] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    text_tables: list[TextTable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evaluator(ABC, Generic[M]):
    """One metric family. Runs on every rank; share items with ``unlearn.core.distributed.map_ids``."""

    subjects: ClassVar[tuple[str, ...]] = ()
    """Models that there must be beside the target and the unlearned one."""

    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse data that this evaluator cannot judge, before any work. Raises RecipeError with the remedy."""

    @abstractmethod
    def __call__(self, evaluation: Evaluation[M]) -> EvaluationResult:
        """Measure all subjects; models come in eval mode, gradients are off."""


def mean_ci95(values: Tensor) -> tuple[float, tuple[float, float] | None]:
    """Return mean and Student-t 95 % interval of values (n,); no interval below two values."""
    mean = values.double().mean().item()
    if len(values) < 2:
        return mean, None
    half = float(t.ppf(0.975, len(values) - 1)) * values.double().std().item() / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def share_ci95(count: int, n: int) -> tuple[float, tuple[float, float]]:
    """Return count / n and its Wilson 95 % interval."""
    z2 = 1.959964**2
    share = count / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return share, (max(0.0, centre - half), min(1.0, centre + half))
