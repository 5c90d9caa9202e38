"""Where noisy states x_t come from: trajectories, generated items noised again, data, or noise alone."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, PositiveInt, Range, at_least, check_ranges
from unlearn.data.base import Batch, Split, check_content
from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.settings import LEAST_STEPS, check_steps
from unlearn.objectives.base import Context, Objective

Source = Literal["trajectory", "student", "average", "generated", "data", "noise"]
"""``trajectory``: DDIM of the target, computed once; ``student``: DDIM of the model as it is; ``average``: DDIM of the
average of its weights (``optim.ema``); ``generated``: items that the target drew, computed once and noised again;
``data``: the batch's images, noised; ``noise``: standard normal numbers in place of images."""


@dataclass(frozen=True)
class States:
    """Noisy states of B items.

    Args:
        x: x_t, (B, C, H, W).
        t: (B,) int64.
        condition: of each state: what to forget (or to keep).
        anchor: what takes its place, None where one of the items has none.
        noise: the eps that is in x_t, None along a trajectory.
    """

    x: Tensor
    t: Tensor
    condition: Condition
    anchor: Condition | None
    noise: Tensor | None

    @torch.no_grad()
    def target(self, model: Denoises, *parts: tuple[float, Condition]) -> Tensor:
        """Return sum_k w_k eps(x_t, t, c_k), (B, C, H, W), of one forward pass without gradient.

        Args:
            model: whose scores: the target's, or the model's own as it is trained.
            *parts: (w_k, B conditions), all conditions of one kind; those of weight 0 are not computed.
        """
        asked = [(weight, condition) for weight, condition in parts if weight != 0]
        times = len(asked)
        conditions = Condition.cat([condition for _, condition in asked])
        scores = model.predict(self.x.repeat(times, 1, 1, 1), self.t.repeat(times), conditions)
        weights = scores.new_tensor([weight for weight, _ in asked])
        total: Tensor = torch.tensordot(weights, scores.unflatten(0, (times, len(self.x))), dims=1)
        return total

    def distance(self, model: Denoises, wanted: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the mean over values of (eps(x_t, t, c) - wanted)^2, (B,); c is ``condition``, or another one."""
        score = model.predict(self.x, self.t, self.condition if condition is None else condition)
        return mean_square(score - wanted)


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean of squares over the values of an item, (B,)."""
    return difference.square().flatten(1).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class StateSource:
    """Draws one noisy state per item of a batch.

    Sources ``data`` and ``noise`` give states of the batch's own items; all others give states of items that are drawn
    from the split at each step.

    Args:
        source: see ``Source``; each term says which it takes.
        items: number of items for which trajectories or images are precomputed (or walked), >= 1.
        steps: DDIM steps per trajectory or generated item, from 2 to the model's timesteps.
        guidance: of trajectories and generated items, >= 0; 1 for none.
        walks: trajectories walked per step (``student``, ``average``), >= 1. More cost more, and make the states of a
            batch less alike.
        images: number of the split's images that are used (``data``), drawn once, >= 1; null for those of the batch.
        spread: draw t anywhere within the DDIM step that begins at the state, as the released code of ESD and SDD
            does, instead of at the state's own time.
    """

    source: Source
    items: PositiveInt = 64
    steps: Annotated[int, Range(at_least, LEAST_STEPS)] = 20
    guidance: NonNegativeFloat = 3.0
    walks: PositiveInt = 4
    images: PositiveInt | None = None
    spread: bool = False
    of_anchor: ClassVar[bool] = False
    """Whether trajectories and generated items are conditioned on the anchor instead of the concept."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse items without images where states are made of images, with a RecipeError."""
        if self.source == "data":
            check_content(splits[split], f"{split}.states.source=data", f"Type {split}.states.source=generated.")

    def prepare(self, model: Denoises, context: Context[Denoises]) -> None:
        """Compute trajectories or items of the target once.

        Raises:
            RecipeError: there are more steps than timesteps, no average is kept, or an item has no anchor.
        """
        if self.of_anchor:
            check_anchors(context)
        if self.source not in ("data", "noise"):
            check_steps(self.steps, model.timesteps, f"{context.split}.states.steps")
        if self.source == "average" and context.averaged is None:
            raise RecipeError("states.source=average asks for an average of the weights. Type optim.ema=0.999.")
        if self.source in ("trajectory", "generated"):
            ids = self._chosen(self.items, context)
            context.remember(self._name, context.split, partial(self._compute, model, context), ids)

    def __call__(self, model: Denoises, batch: Batch, context: Context[Denoises]) -> States:
        """Return one state per item of the batch."""
        ids, draw = batch["id"], context.randomness
        if self.source == "data":
            given = batch
            if self.images is not None:
                given = context.batch(context.split, self._pick(ids, self.images, context))
            return self._noised(model, ids, given, model.latents(given, draw), context)
        if self.source == "noise":
            return self._noised(model, ids, batch, model.noise(ids, draw.child("start")), context)
        if self.source in ("student", "average"):
            return self._walked(model, ids, context)
        picked = self._pick(ids, self.items, context)
        items = context.batch(context.split, picked)
        # several states of a batch may be of one item: its rows are read once
        unique, where = picked.unique(return_inverse=True)
        rows = context.recall(self._name, context.split, unique)
        if self.source == "generated":
            return self._noised(model, ids, items, rows[where], context)
        number = draw.child("step").integers(ids, self.steps)
        return self._on_trajectory(model, ids, items, rows[where * self.steps + number], number, context)

    @property
    def _name(self) -> str:
        """Key of the precomputed rows, which differs where their settings do."""
        anchored = "_of_anchor" if self.of_anchor else ""
        return f"{self.source}{anchored}_{self.steps}_{self.guidance:g}_{self.items}"

    def _chosen(self, most: int, context: Context[Denoises]) -> Tensor:
        """Return the ids of at most so many items, drawn once for all by the run's seed."""
        ids = context.splits[context.split].ids
        if len(ids) <= most:
            return ids

        def draw() -> Tensor:
            return ids[Randomness(context.randomness.seed, "states").permutation(len(ids))[:most]]

        if context.reference_cache is None:
            return draw()
        return context.reference_cache.once(f"{context.split}.states_{most}", draw)

    def _pick(self, ids: Tensor, most: int, context: Context[Denoises]) -> Tensor:
        """Return one of the chosen items for each of ``ids``."""
        chosen = self._chosen(most, context).to(ids.device)
        return chosen[context.randomness.child("item").integers(ids, len(chosen))]

    def _compute(self, model: Denoises, context: Context[Denoises], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the states before each step, or the end, of each item of a batch."""
        items = context.batch(context.split, batch["id"], "anchor") if self.of_anchor else batch
        x = model.noise(batch["id"], Randomness(context.randomness.seed, f"states/{context.split}"))
        before = []
        for _, after in model.trajectory(x, model.condition(items), self.guidance, self.steps):
            before.append(x)
            x = after
        if self.source == "generated":
            return x, torch.ones_like(batch["id"])
        return torch.stack(before, dim=1).flatten(0, 1), torch.full_like(batch["id"], self.steps)

    @torch.no_grad()
    def _walked(self, model: Denoises, ids: Tensor, context: Context[Denoises]) -> States:
        """Walk a few trajectories of the model, as far as the last state of the batch that lies on them."""
        draw = context.randomness
        walks, where = draw.child("walk").integers(ids, self.walks).unique(return_inverse=True)
        number = draw.child("step").integers(ids, self.steps)
        picked = self._pick(walks, self.items, context)  # all states of a walk have its item
        x = model.noise(walks, draw.child("start"))
        before, last = [x], int(number.max())
        form = "anchor" if self.of_anchor else ""
        condition = model.condition(context.batch(context.split, picked, form))
        moved = context.averaged if self.source == "average" else None
        with moved() if moved is not None else nullcontext():
            if last:
                for step, after in model.trajectory(x, condition, self.guidance, self.steps):
                    before.append(after)
                    if step + 1 == last:
                        break
        items = context.batch(context.split, picked[where])
        return self._on_trajectory(model, ids, items, torch.stack(before)[number, where], number, context)

    def _on_trajectory(
        self, model: Denoises, ids: Tensor, items: Batch, x: Tensor, number: Tensor, context: Context[Denoises]
    ) -> States:
        """Return states x before the steps ``number`` (B,)."""
        times = model.times(self.steps)
        t = times[number]
        if self.spread:
            # the step that begins at times[n] spans the times from there up to the one before it, or to T at the first
            above = torch.cat([times.new_tensor([model.timesteps]), times[:-1]])
            share = context.randomness.child("spread").uniform(ids, (), torch.float64)
            t = t + (share * (above[number] - t)).long()
        return States(x, t, model.condition(items), self._anchor(model, items, context), None)

    def _noised(self, model: Denoises, ids: Tensor, items: Batch, x0: Tensor, context: Context[Denoises]) -> States:
        draw = context.randomness
        t = draw.child("t").integers(ids, model.timesteps)
        noise = draw.child("noise").normal(ids, tuple(x0.shape[1:]), x0.dtype)
        anchor = self._anchor(model, items, context)
        return States(model.noised(x0, noise, t), t, model.condition(items), anchor, noise)

    def _anchor(self, model: Denoises, items: Batch, context: Context[Denoises]) -> Condition | None:
        dataset = context.splits[context.split].dataset
        if not bool(dataset.having_form("anchor")[items["id"].cpu()].all()):
            return None
        return model.condition(context.batch(context.split, items["id"], "anchor"))


@dataclass(frozen=True, kw_only=True)
class AnchorStates(StateSource):
    """States of items that the target drew of the anchor, e.g. of "an eight" where threes are forgotten."""

    source: Source = "generated"
    of_anchor: ClassVar[bool] = True


D = TypeVar("D", bound=Denoises, default=Denoises)


@dataclass(frozen=True, kw_only=True)
class NoisyStateObjective(Objective[D]):
    """A term that compares scores at noisy states.

    Args:
        states: where x_t comes from.
    """

    states: StateSource
    sources: ClassVar[tuple[Source, ...]]
    """What ``states.source`` may be."""
    prepares_with: ClassVar[tuple[str, ...]] = ("states",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.states.source not in self.sources:
            raise ValueError(f"states.source is {self.states.source}; it must be one of {', '.join(self.sources)}")

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        self.states.check(splits, split)

    @override
    def prepare(self, model: D, context: Context[D]) -> None:
        self.states.prepare(model, context)


def check_anchors(context: Context[Denoises]) -> None:
    """Refuse a split with items that are of no concept with an anchor. Raises RecipeError."""
    split = context.splits[context.split]
    lacking = int((~split.dataset.having_form("anchor")[split.ids]).sum())
    if lacking:
        raise RecipeError(
            f"{lacking} of the {len(split)} {context.split} items are of no concept that has an anchor. "
            "Type data.concepts=[{name: NAME, anchor: OTHER}]."
        )
