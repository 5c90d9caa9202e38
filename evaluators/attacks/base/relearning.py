"""Relearning: fine-tune on a few forget items and measure what comes back."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import TypeVar, override

from unlearn.core.records import Picture, Record
from unlearn.core.validation import PositiveFloat, PositiveInt, Range, distinct
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.figures import DPI, OTHER, SUBJECTS, encode
from unlearn.evaluators.subjects import trainable_copy
from unlearn.models.capabilities import Trains

TrainedModel = TypeVar("TrainedModel", bound=Trains)

Curves = dict[tuple[str, int], list[tuple[int, float]]]
"""(subject, items trained on) -> (steps, measured value)."""


@dataclass(frozen=True, kw_only=True)
class Relearning(Evaluator[TrainedModel]):
    """Trains a copy of every subject on k forget items and measures what comes back.

    AdamW without decay at a constant rate, the model's own loss, all weights; items and order are drawn by the seed and
    are the same for every subject. A model that never saw the data shows what the k items alone teach.

    Args:
        items: numbers of forget items to train on, each >= 1.
        steps: steps after which the copy is measured, each >= 0; 0 is before the attack.
        lr: learning rate, > 0.
        batch: items per step, >= 1; a set smaller than that is taken whole.
        batch_size: items per forward pass of the measurement; does not change the result.
    """

    items: Annotated[list[int], Range(distinct, 1)] = field(default_factory=lambda: [4, 16])
    steps: Annotated[list[int], Range(distinct, 0)] = field(default_factory=lambda: [0, 5, 20])
    lr: PositiveFloat = 1e-4
    batch: PositiveInt = 4
    batch_size: PositiveInt = 16

    what: ClassVar[str]
    """What the curves show, in words."""
    left: ClassVar[int] = 0
    """How many candidates must be left untrained."""

    @abstractmethod
    def measure(
        self,
        evaluation: Evaluation[TrainedModel],
        subject: str,
        copy: TrainedModel,
        ids: Tensor,
        others: Tensor,
        budget: str,
    ) -> list[Record]:
        """Measure the copy of a subject; the first record's value goes into the curves.

        Args:
            evaluation: with the data.
            subject: whose copy it is.
            copy: as it was trained so far.
            ids: forget items that it is trained on, (k,).
            others: forget items that no copy is trained on.
            budget: of the attack so far, in words.
        """

    def candidates(self, evaluation: Evaluation[TrainedModel]) -> Tensor:
        """Return the forget items that copies may be trained on, (n,)."""
        return evaluation.splits["forget"].ids

    def trainable(self, model: TrainedModel) -> bool:
        """Return whether a model can be trained on items."""
        return True

    @override
    def __call__(self, evaluation: Evaluation[TrainedModel]) -> EvaluationResult:
        """Return ``attack_relearning`` for every subject, k and number of steps, and a picture of the curves.

        A k that leaves too few other items (where those are measured) is skipped.
        """
        ids = self.candidates(evaluation)
        order = ids[evaluation.randomness.child("items").permutation(len(ids))]
        sizes = [k for k in sorted(self.items) if k <= len(order) - self.left]
        if not sizes:
            few = f"too few forget items ({len(order)}) to train on {min(self.items)} and measure others"
            return EvaluationResult(notes=[f"relearning: {few}, so there is no attack_relearning."])
        found, curves = EvaluationResult(), Curves()
        for subject in evaluation.models:
            for k in sizes if self.trainable(evaluation.models[subject]) else ():
                measured = self._attack(evaluation, subject, order[:k], order[sizes[-1] :])
                found.records.extend(record for records in measured.values() for record in records)
                curves[subject, k] = [(n, records[0].value) for n, records in measured.items()]
        if curves:
            found.pictures.append(picture(curves, self.what))
        return found

    def _attack(
        self, evaluation: Evaluation[TrainedModel], subject: str, ids: Tensor, others: Tensor
    ) -> dict[int, list[Record]]:
        """Return steps -> what ``measure`` finds then; the copy is gone before the next one is made."""
        copy = trainable_copy(evaluation.models, subject)
        return {
            n: self.measure(evaluation, subject, copy, ids, others, f"{len(ids)} items, {n} steps")
            for n in self.training(evaluation, copy, ids)
        }

    def training(self, evaluation: Evaluation[TrainedModel], copy: TrainedModel, ids: Tensor) -> Iterator[int]:
        """Train a copy on the items, and yield the number of steps taken at each of ``steps``."""
        optimizer = torch.optim.AdamW(copy.parameters(), lr=self.lr, weight_decay=0.0)
        stream = evaluation.randomness.child(f"relearning/{len(ids)}")
        size = min(self.batch, len(ids))

        def loss(step: int) -> Tensor:
            # each epoch is a new order of the k items; a last batch that is not full is dropped
            epoch, place = divmod(step, len(ids) // size)
            chosen = ids[stream.at(epoch).permutation(len(ids))[place * size : (place + 1) * size]]
            return copy.training_loss(evaluation.batch("forget", chosen), stream.child("loss").at(step)).mean()

        yield from train(optimizer, loss, self.steps)


def train(optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], stops: Sequence[int]) -> Iterator[int]:
    """Minimise ``loss(step)``, and yield the number of steps taken whenever it is one of ``stops``."""
    if 0 in stops:
        yield 0
    for step in range(max(stops)):
        with torch.enable_grad():
            optimizer.zero_grad()
            loss(step).backward()
        optimizer.step()
        if step + 1 in stops:
            yield step + 1


def picture(
    curves: Mapping[tuple[str, int], Sequence[tuple[int, float]]], what: str, items: str = "forget items"
) -> Picture:
    """Draw the curves of all subjects, one panel per number of ``items``; ``what`` is on the vertical axis."""
    numbers = sorted({k for _, k in curves})
    figure = Figure(figsize=(max(4.0, 3.2 * len(numbers)), 2.8), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for axes, k in zip(panels, numbers, strict=True):
        for subject in [subject for subject, number in curves if number == k]:
            steps, values = zip(*curves[subject, k], strict=True)
            axes.plot(steps, values, "o-", color=SUBJECTS.get(subject, OTHER), markersize=4, label=subject)
        axes.set_title(f"trained on {k} {items}", fontsize=9, loc="left")
        axes.set_xlabel("steps", fontsize=8)
        axes.set_xticks(sorted({step for points in curves.values() for step, _ in points}))
        axes.set_ylim(min(-0.02, *(value for points in curves.values() for _, value in points)), 1.02)
        axes.tick_params(labelsize=8)
        axes.spines[["right", "top"]].set_visible(False)
    panels[0].set_ylabel(what, fontsize=8)
    panels[0].legend(frameon=False, fontsize=8)
    return Picture(
        name="relearning",
        title="Relearning",
        caption=(
            f"{what[:1].upper()}{what[1:]}, while a copy of each model is trained on a few {items}. Where the "
            "unlearned curve climbs above the retrained one, the data were hidden, not forgotten."
        ),
        png=encode(figure),
    )
