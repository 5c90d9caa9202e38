"""Where noisy states x_t come from: trajectories, generated items noised again, or data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from unlearn.data.base import Batch
from unlearn.models.conditions import Condition
from unlearn.objectives.base import Context
from unlearn.randomness import Randomness

Source = Literal["trajectory", "student", "generated", "data"]
"""``trajectory``: DDIM of the target, computed once; ``student``: DDIM of the model as it is, cut off at the state;
``generated``: items that the target drew, computed once and noised again; ``data``: the batch's images, noised."""


@dataclass(frozen=True)
class States:
    """Noisy states of B items.

    Args:
        x: x_t, (B, C, H, W).
        t: (B,) int64.
        condition: what is to be forgotten (or kept), of each state.
        anchor: what takes its place, None where the items have none.
        noise: the eps that is in x_t, None along a trajectory.
    """

    x: Tensor
    t: Tensor
    condition: Condition
    anchor: Condition | None
    noise: Tensor | None


@dataclass(frozen=True, kw_only=True)
class StateSource:
    """Draws states.

    Args:
        source: see ``Source``.
        items: so many items of the split have a trajectory or a generated item, drawn by their order.
        steps: DDIM steps of a trajectory.
        guidance: of trajectories and generated items; 1 for none.
        told_anchor: whether items are generated from the anchor's prompt.
    """

    source: Source
    items: int = 64
    steps: int = 20
    guidance: float = 3.0
    told_anchor: bool = False

    def prepare(self, model: Any, context: Context) -> None:
        """Compute trajectories or items of the target once."""
        if self.source in ("trajectory", "generated"):
            compute = partial(self._compute, model, context)
            context.remember(self._name, context.split, compute, self._chosen(context))

    def __call__(self, model: Any, batch: Batch, context: Context) -> States:
        """Return one state an item of the batch: of the item itself (``data``), or of one drawn by its id and step."""
        ids, draw = batch["id"], context.randomness
        if self.source == "data":
            return self._noised(model, batch, batch, model.latents(batch, draw), context)
        chosen = self._chosen(context).to(ids.device)
        picked = chosen[draw.child("item").integers(ids, len(chosen))]
        told = context.batch(context.split, picked)
        if self.source == "generated":
            unique, where = picked.unique(return_inverse=True)
            found = context.recall(self._name, context.split, unique)[where]
            return self._noised(model, batch, told, found.to(draw_dtype(model)), context)
        number = draw.child("step").integers(ids, self.steps)
        t = model.times(self.steps)[number]
        if self.source == "trajectory":
            unique, where = picked.unique(return_inverse=True)
            rows = context.recall(self._name, context.split, unique)
            x = rows[where * self.steps + number].to(draw_dtype(model))
        else:
            x = self._walked(model, ids, told, number, draw)
        return States(x, t, model.condition(told), self._anchor(model, told, context), None)

    @property
    def _name(self) -> str:
        anchored = "_of_anchor" if self.told_anchor else ""
        return f"{self.source}{anchored}_{self.steps}_{self.guidance:g}_{self.items}"

    def _chosen(self, context: Context) -> Tensor:
        """Return the ids of the items, at most ``items``, spread over the split."""
        ids = context.splits[context.split].ids
        order = Randomness(0, "states").permutation(len(ids))
        return ids[order[: self.items].sort().values]

    def _compute(self, model: Any, context: Context, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the states before each step, or the end, of each item of a batch."""
        told = context.batch(context.split, batch["id"], "anchor") if self.told_anchor else batch
        condition = model.condition(told)
        x = model.noise(batch["id"], Randomness(context.randomness.seed, f"states/{context.split}"))
        before = []
        for _, after in model.trajectory(x, condition, self.guidance, self.steps):
            before.append(x)
            x = after
        if self.source == "generated":
            return x, torch.ones_like(batch["id"])
        return torch.stack(before, dim=1).flatten(0, 1), torch.full_like(batch["id"], self.steps)

    @torch.no_grad()
    def _walked(self, model: Any, ids: Tensor, told: Batch, number: Tensor, draw: Randomness) -> Tensor:
        """Return the state before step ``number`` of each item, (B, C, H, W), along the model's own trajectory."""
        x = model.noise(ids, draw.child("start"))
        found = x.clone()
        last = int(number.max()) if len(number) else 0
        for step, after in model.trajectory(x, model.condition(told), self.guidance, self.steps):
            if step >= last:
                break
            reached = number == step + 1
            found[reached] = after[reached]
        return found

    def _noised(self, model: Any, batch: Batch, told: Batch, x0: Tensor, context: Context) -> States:
        draw, ids = context.randomness, batch["id"]
        t = draw.child("t").integers(ids, model.timesteps)
        noise = draw.child("noise").normal(ids, tuple(x0.shape[1:]), x0.dtype)
        anchor = self._anchor(model, told, context)
        return States(model.noised(x0, noise, t), t, model.condition(told), anchor, noise)

    def _anchor(self, model: Any, told: Batch, context: Context) -> Condition | None:
        dataset = context.splits[context.split].dataset
        if not bool(dataset.having_form("anchor")[told["id"].cpu()].all()):
            return None
        return model.condition(context.batch(context.split, told["id"], "anchor"))  # type: ignore[no-any-return]


def draw_dtype(model: Any) -> torch.dtype:
    """Return the float type of a model's states."""
    return next(model.denoiser.parameters()).dtype  # type: ignore[no-any-return]
