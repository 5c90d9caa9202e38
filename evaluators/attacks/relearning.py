"""Relearning: a short training on a few forget items, and what comes back of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from unlearn.data.base import Split
from unlearn.errors import RecipeError
from unlearn.evaluators.attacks.scoring import attack_records, attacked, scores_of
from unlearn.evaluators.base import Evaluation, Evaluator, Findings, Picture
from unlearn.evaluators.pictures import DPI, OTHER, SUBJECTS, encode
from unlearn.evaluators.shared import judged
from unlearn.ranges import above, at_least

OTHERS, RELEARNED = "others", "relearned"
"""Which forget items are scored, in ``about.category``."""

Curves = dict[tuple[str, int], list[tuple[int, float]]]
"""(subject, items trained on) -> (steps, exact memorisation of the others)."""


@dataclass(frozen=True, kw_only=True)
class Relearning(Evaluator):
    """Trains a copy of every subject on k forget items and measures the others, which stay the same for every k.

    If the others come back as well, they were hidden and not forgotten. A model that never saw the data shows what
    the k items alone teach. AdamW without decay at a constant rate, the model's own loss, all weights; items and order
    are drawn by the seed and are the same for every subject.

    Args:
        items: numbers of forget items that are trained on, each >= 1.
        steps: steps after which the copy is measured, each >= 0; 0 is before the attack.
        lr: learning rate, > 0.
        batch: items a step, >= 1; a set smaller than that is taken whole.
        scored: at most so many of the other items are scored, drawn by the seed; null takes all.
        batch_size: items a forward pass of the measurement; does not change the result.

    Reference:
        Hu et al., Unlearning or Obfuscating? Jogging the Memory of Unlearned LLMs via Benign Relearning, 2025.
        arXiv:2406.13356
    """

    items: list[int] = field(default_factory=lambda: [4, 16])
    steps: list[int] = field(default_factory=lambda: [0, 5, 20])
    lr: float = 1e-4
    batch: int = 4
    scored: int | None = 100
    batch_size: int = 16

    needs: ClassVar[tuple[str, ...]] = ("training_loss", "continues")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        at_least(self, batch=1, scored=1, batch_size=1)
        for name, least in (("items", 1), ("steps", 0)):
            given = getattr(self, name)
            if not given or min(given) < least or len(set(given)) < len(given):
                raise ValueError(f"{name} is {given}; it must be different numbers, each >= {least}")
        above(self, lr=0)

    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse a forget set that leaves no other items."""
        n = len(judged(splits["forget"]))
        if n <= max(self.items):
            raise RecipeError(
                f"evaluate.relearning trains on {max(self.items)} forget items and scores the others, but there are "
                f"only {n}. Type evaluate.relearning.items=[{max(1, n // 4)}], or forget more."
            )

    def __call__(self, evaluation: Evaluation) -> Findings:
        """Return ``attack_relearning`` for every subject, k and number of steps, and a picture of the curves.

        A k that leaves no other items (where a part of the forget set is measured) is left out.
        """
        ids = attacked(evaluation, None)
        order = ids[evaluation.randomness.child("items").permutation(len(ids))]
        sizes = [k for k in sorted(self.items) if k < len(order)]
        if not sizes:
            few = f"too few forget items ({len(ids)}) to train on {min(self.items)} and score others"
            return Findings(notes=[f"relearning: {few}, so there is no attack_relearning."])
        others = order[sizes[-1] :][: self.scored]
        found, curves = Findings(), Curves()
        for subject, model in evaluation.models.items():
            for k in sizes:
                curves[subject, k] = []
                for n, copy in self.checkpoints(evaluation, model, order[:k]):
                    for which, scored in ((OTHERS, others), (RELEARNED, order[:k])):
                        scores = scores_of(evaluation, copy, scored, self.batch_size)
                        budget = f"{k} items, {n} steps"
                        records = attack_records(
                            "relearning", subject, scores, budget, evaluation.seed, {"category": which}
                        )
                        found.records.extend(records if which == OTHERS else records[:1])
                        if which == OTHERS:
                            curves[subject, k].append((n, records[0].value))
        found.pictures.append(picture(curves))
        return found

    def checkpoints(self, evaluation: Evaluation, model: Any, ids: Tensor) -> Iterator[tuple[int, Any]]:
        """Yield (steps, the copy so far) at each number of steps that is asked for; the model itself stays as it is."""
        copy = deepcopy(model).requires_grad_(True)
        optimizer = torch.optim.AdamW(copy.parameters(), lr=self.lr, weight_decay=0.0)
        stream = evaluation.randomness.child(f"relearning/{len(ids)}")
        size = min(self.batch, len(ids))
        if 0 in self.steps:
            yield 0, copy
        for step in range(max(self.steps)):
            epoch, place = divmod(step, len(ids) // size)
            chosen = ids[stream.at(epoch).permutation(len(ids))[place * size : (place + 1) * size]]
            with torch.enable_grad():
                loss = copy.training_loss(evaluation.batch("forget", chosen), stream.child("loss").at(step)).mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            if step + 1 in self.steps:
                yield step + 1, copy


def picture(curves: Mapping[tuple[str, int], Sequence[tuple[int, float]]]) -> Picture:
    """Draw the curves of all subjects, a panel for each number of items."""
    numbers = sorted({k for _, k in curves})
    figure = Figure(figsize=(max(4.0, 3.2 * len(numbers)), 2.8), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for axes, k in zip(panels, numbers, strict=True):
        for subject in [subject for subject, number in curves if number == k]:
            steps, values = zip(*curves[subject, k], strict=True)
            axes.plot(steps, values, "o-", color=SUBJECTS.get(subject, OTHER), markersize=4, label=subject)
        axes.set_title(f"trained on {k} forget items", fontsize=9, loc="left")
        axes.set_xlabel("steps", fontsize=8)
        axes.set_xticks(sorted({step for points in curves.values() for step, _ in points}))
        axes.set_ylim(-0.02, 1.02)
        axes.tick_params(labelsize=8)
        axes.spines[["right", "top"]].set_visible(False)
    panels[0].set_ylabel("exact memorisation of the others", fontsize=8)
    panels[0].legend(frameon=False, fontsize=8)
    return Picture(
        name="relearning",
        title="Relearning",
        caption=(
            "Share of the answer tokens of other forget items that each model says, while a copy of it is trained on a "
            "few forget items. Where the unlearned curve climbs above the retrained one, the data were hidden, not "
            "forgotten."
        ),
        png=encode(figure),
    )
