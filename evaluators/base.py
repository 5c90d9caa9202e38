"""What an evaluator is: settings, declared metrics, and records and pictures about several models of one run."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Self

import torch
from torch import Tensor, nn

from unlearn.core.randomness import Randomness
from unlearn.core.records import LESS_RETRAINED, Direction, Picture, Record, TextTable
from unlearn.core.validation import check_ranges, smallest
from unlearn.data.base import Batch, Split
from unlearn.evaluators.per_item import ItemValues, Separation
from unlearn.evaluators.statistics import Interval
from unlearn.models.capabilities import M, M_co


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric, declared once by the evaluator that reports it; its label, unit and direction come from here.

    Args:
        name: as in records. A name in braces (``frechet_{net}``) is a pattern, filled in by ``named``.
        label: its name in words, which may hold the same pattern.
        formula: what is computed.
        unit: e.g. ``bits/dim`` or ``share``; empty for a pure number.
        direction: where a better value lies. If it differs, a mapping from the ``score`` of a record, or from its
            split, to its direction; others are ``none``.
        otherwise: remark on the direction where the evaluator sets another than the one declared.
        source: publication, with section or equation.
    """

    name: str
    label: str
    formula: str
    unit: str = ""
    direction: Direction | Mapping[str, Direction] = "none"
    otherwise: str = ""
    source: str = ""

    def named(self, **names: str) -> Metric:
        """Return the metric with its pattern filled in, e.g. ``named(net="digitnet8")``."""
        return replace(self, name=self.name.format(**names), label=self.label.format(**names))

    def matches(self, name: str) -> bool:
        """Whether a record of this name may be one of this metric, its pattern filled in."""
        pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(self.name))  # which escapes the braces too
        return re.fullmatch(f"{pattern}({LESS_RETRAINED})?", name) is not None

    def direction_of(self, split: str, score: str = "") -> Direction:
        """Return where a better value lies on a split, or of a score that has its own direction."""
        if isinstance(self.direction, str):
            return self.direction
        return self.direction.get(score) or self.direction.get(split, "none")


DIFFERENCE = Metric(
    name="{metric}" + LESS_RETRAINED,
    label="{label}, less the retrained model’s",
    formula="mean over items of the difference between a model's value and the retrained model's for the same item; of "
    "an AUC, the difference of the two. Paired interval, clustered where items share a source",
    direction="zero",
    source="Miller 2024, sections 2.2 and 4.2",
)
"""Reported beside every figure that is a mean over items, or an AUC, where the run has a retrained model."""


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run that some evaluators report.

    Attributes:
        steps: steps taken.
        seconds: wall time of the steps, preparation included; selection and evaluation are not.
        target_seconds: wall time of the target's training, None where it is unknown.
        target_origin: where the target came from: given, shipped, cached, trained, or in memory.
        peak_memory: peak memory in bytes: of the GPU during the steps, or of the process so far.
        state: the objectives' last states by term name, e.g. ``{"forget": {"reached": True}}``.
        networks: networks trained beside the model, by name (a key).
    """

    steps: int = 0
    seconds: float = 0.0
    target_seconds: float | None = None
    target_origin: str = ""
    peak_memory: int = 0
    state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation(Generic[M_co]):
    """What an evaluator is given.

    Attributes:
        models: subject -> wrapper; ``target`` and ``unlearned`` always, ``retrained`` where there is one. Reading a
            subject may load its model and drop the previous one, so hold only one at a time.
        splits: the data by split name (forget, retain, holdout, test).
        randomness: stream of this evaluator; equal for all subjects, so that noise is shared.
        device: where the models live.
        run: facts about the run.
        seed: the run's seed, for the records.
        cache: what several evaluators share (samples, likelihoods), computed once.
        name: the evaluator's key in the recipe, which its records carry.
        per_item: what each subject's figures were made from, by what they measure.
    """

    models: Mapping[str, M_co]
    splits: Mapping[str, Split]
    randomness: Randomness
    device: torch.device
    run: RunFacts = field(default_factory=RunFacts)
    seed: int = 0
    cache: dict[Any, Any] = field(default_factory=dict)
    name: str = ""
    per_item: dict[Any, dict[str, tuple[Record, ItemValues | Separation]]] = field(default_factory=dict)

    def batch(self, split: str, ids: Tensor, form: str = "") -> Batch:
        """Return items of a split on the device, in another form where one is named (a paraphrase, the prompt)."""
        data = self.splits[split]
        found = data.dataset.form(form, ids.cpu()) if form else data.batch(ids.cpu())
        return {key: value.to(self.device) for key, value in found.items()}

    def record(
        self,
        metric: Metric,
        subject: str,
        split: str,
        figure: Tensor | Separation | float | tuple[float, Interval],
        *,
        clusters: Tensor | None = None,
        n: int = 1,
        about: Mapping[str, str] | None = None,
        direction: Direction | None = None,
        detector: Mapping[str, str] | None = None,
    ) -> Record:
        """Return a record of this evaluator; unit, direction and label are those that the metric declares.

        Args:
            metric: a declared metric, without pattern.
            subject: whose figure it is.
            split: of the items or samples, or empty.
            figure: the value of each item (n,): its mean with Student's t interval is recorded, which is cut to
                [0, 1] for shares; or hits (n,) bool: their share with Wilson's interval; or scores of members and of
                others: the AUC with DeLong's interval; or the value itself, with its interval where it has one.
            clusters: (n,), the source of each item, where items share one (see ``clusters``).
            n: number of items behind a figure that is given as a value.
            about: what else varies.
            direction: in place of the declared one.
            detector: see ``Record``.
        """
        per_item: ItemValues | Separation | None = None
        if isinstance(figure, Tensor):
            per_item = ItemValues(figure, clusters, is_share=metric.unit == "share")
        elif isinstance(figure, Separation):
            per_item = figure
        else:
            value, ci95 = figure if isinstance(figure, tuple) else (figure, None)
        if per_item is not None:
            (value, ci95), n = per_item.figure(), len(per_item)
        about = dict(about or {})
        record = Record(
            evaluator=self.name,
            metric=metric.name,
            subject=subject,
            split=split,
            about=about,
            value=value,
            ci95=ci95,
            n=n,
            seed=self.seed,
            direction=direction or metric.direction_of(split, about.get("score", "")),
            unit=metric.unit,
            detector=dict(detector or {}),
            label=metric.label,
        )
        if per_item is not None:
            measured = (metric.name, split, tuple(sorted(about.items())))
            self.per_item.setdefault(measured, {})[subject] = record, per_item
        return record

    def clusters(self, ids: Tensor) -> Tensor:
        """Return the source of each item (n,), by number; see ``Dataset.clusters``."""
        return next(iter(self.splits.values())).dataset.clusters[ids]  # the splits of a run share their data

    def differences(self) -> list[Record]:
        """Return how far the recorded figures lie from the retrained model's, for those over the same items."""
        found = []
        for by_subject in self.per_item.values():
            if "retrained" not in by_subject:
                continue
            _, gold = by_subject["retrained"]
            for record, values in by_subject.values():
                if record.subject == "retrained" or type(values) is not type(gold) or len(values) != len(gold):
                    continue
                value, ci95 = values.less(gold)  # type: ignore[arg-type]
                metric = DIFFERENCE.named(metric=record.metric, label=record.label)
                found.append(
                    replace(record, metric=metric.name, label=metric.label, value=value, ci95=ci95, direction="zero")
                )
        return found


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluator returns.

    Attributes:
        records: the figures.
        pictures: for the report.
        items: rows of item-level values (subject, split, id, metric, value).
        text_tables: for the report.
        notes: sentences on what could not be measured, each beginning with the evaluator's key and a colon.
        failed: the key of each evaluator that raised an error -> its traceback.
    """

    records: list[Record] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    text_tables: list[TextTable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """The notes on evaluators that failed."""
        return [note for note in self.notes if any(note.startswith(f"{key}:") for key in self.failed)]


@dataclass(frozen=True, kw_only=True)
class Evaluator(ABC, Generic[M]):
    """One family of metrics. It runs on every rank; share items with ``unlearn.core.distributed.map_ids``."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """All metrics that it may report."""

    subjects: ClassVar[tuple[str, ...]] = ()
    """Models that it needs in addition to the target and the unlearned one."""

    of_the_run: ClassVar[bool] = False
    """Whether it reports on the run itself (its time, its goal), which a model folder alone does not tell."""

    tried_on: ClassVar[int] = 2
    """How many items of each split ``--check`` calls it with."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def smallest(self) -> Self:
        """Return a copy that does as little as its settings allow, for ``--check``; its figures say nothing.

        One whose smallest settings are not valid, or still slow, overrides this.
        """
        return smallest(self, least=2, keep=("batch_size",))

    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse data that this evaluator cannot measure, before any work. Raises RecipeError with the remedy."""

    @abstractmethod
    def __call__(self, evaluation: Evaluation[M]) -> EvaluationResult:
        """Measure all subjects; models come in eval mode, gradients are off."""
