"""The one ridge regression behind closed-form edits of linear maps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearn.core.errors import RecipeError

log = logging.getLogger(__name__)

Rule = Literal["replace", "projected", "projected_jointly"]
"""What the map is to give for an input c whose guide is g. ``replace``: W g; ``projected``: W g less its part along
W c; ``projected_jointly``: the same with one coefficient for all rows of a prompt."""

Singular = Literal["refuse", "regularise"]

LARGEST_CONDITION = 1e12
"""Condition numbers above it leave fewer than four right digits in double precision: the system counts as singular."""

ADDED = 1e-9
"""Ridge that ``regularise`` adds, as a share of the largest eigenvalue."""


@dataclass(frozen=True)
class Rows:
    """What edited maps are asked for: to treat R inputs as they treat their guides.

    Args:
        inputs: c_i, (R, n) float64.
        guides: g_i, (R, n) float64.
        weights: w_i, (R,) float64, >= 0.
        prompts: (R,) int64, which rows belong together.
    """

    inputs: Tensor
    guides: Tensor
    weights: Tensor
    prompts: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass
class Kept:
    """Inputs whose outputs are to stay, as the sum over them that all maps share.

    Args:
        gram: sum_j w_j r_j r_j^T, (n, n) float64.
        count: number of inputs.
        mark: (n,) float64, an input by which its encoder is known; a file of others is refused.
    """

    gram: Tensor
    count: int = 0
    mark: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    @classmethod
    def nothing(cls, width: int, device: torch.device | str = "cpu") -> Self:
        """Return an empty sum for inputs of ``width`` values."""
        return cls(torch.zeros(width, width, dtype=torch.float64, device=device))

    def add(self, inputs: Tensor, weight: float = 1.0) -> None:
        """Add inputs (R, n), each with the same weight >= 0."""
        rows = inputs.to(self.gram)
        self.gram.addmm_(rows.T, rows, alpha=weight)
        self.count += len(rows)

    def join(self, other: Kept, weight: float = 1.0) -> None:
        """Add another sum, of inputs of the same encoder. Raises RecipeError where it is of another."""
        same = other.mark.shape == self.mark.shape and torch.allclose(other.mark.to(self.mark), self.mark, atol=1e-3)
        if other.gram.shape != self.gram.shape or not same:
            raise RecipeError(
                f"The sums that are to be kept are of another encoder, of inputs with {len(other.gram)} values; this "
                f"one gives {len(self.gram)}. Collect them with this model."
            )
        self.gram += weight * other.gram.to(self.gram)
        self.count += other.count

    def save(self, path: Path) -> None:
        """Write the sum into a file of safetensors."""
        parts = {"gram": self.gram, "mark": self.mark, "count": torch.tensor(self.count)}
        save_file({name: part.cpu().contiguous() for name, part in parts.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote. Raises RecipeError where it is none."""
        try:
            parts = load_file(path)
            return cls(parts["gram"].double(), int(parts["count"]), parts["mark"].double())
        except (OSError, KeyError, SafetensorError) as error:
            raise RecipeError(f"{path} holds no sums that an edit keeps ({error}). Collect them anew.") from error


@dataclass(frozen=True)
class Ridge:
    """The factorised system B of an edit, which all maps with the same inputs share.

    For each map W the edit solves, in double precision,

        W* = argmin_X  lam ||X - W||^2 + sum_i w_i ||X c_i - v_i||^2 + sum_j w_j ||X r_j - W r_j||^2 = A B^-1
        A = lam W + sum_i w_i v_i c_i^T + sum_j w_j W r_j r_j^T
        B = lam I + sum_i w_i c_i c_i^T + sum_j w_j r_j r_j^T

    As A = W B + sum_i w_i (v_i - W c_i) c_i^T, A B^-1 = W + sum_i w_i (v_i - W c_i) (B^-1 c_i)^T: what is kept enters
    by B alone, and one solution for the R inputs serves every map. Nothing is inverted.

    Args:
        rows: what is asked for.
        solved: w_i B^-1 c_i, (R, n) float64.
        condition: of B, the ratio of its largest to its smallest eigenvalue.
        lam: the ridge, with what was added to a singular system.
    """

    rows: Rows
    solved: Tensor
    condition: float
    lam: float

    @classmethod
    def of(cls, rows: Rows, kept: Kept, lam: float, singular: Singular = "refuse") -> Self:
        """Factorise B.

        Args:
            rows: what is asked for.
            kept: what is to stay.
            lam: how strongly the weights are held, >= 0.
            singular: what to do where B is singular in double precision (lam = 0 with fewer independent inputs than n,
                say): ``refuse`` it, or ``regularise`` it by a small ridge, with a warning.

        Raises:
            RecipeError: B is singular, and ``singular`` is ``refuse``.
        """
        system = kept.gram.addmm(rows.inputs.T, rows.weights[:, None] * rows.inputs)
        system.diagonal().add_(lam)
        smallest, largest = _extremes(system)
        if not smallest * LARGEST_CONDITION > largest:
            added = ADDED * largest or 1.0
            what = (
                f"{len(rows) + kept.count} inputs and a ridge of {lam:g} leave the system of {len(system)} unknowns "
                f"per row singular (eigenvalues from {smallest:.1e} to {largest:.1e})"
            )
            if singular == "refuse":
                raise RecipeError(
                    f"{what}. Type a larger ridge (edit.lam=0.1), or edit.singular=regularise to add {added:.1e}."
                )
            log.warning("%s; a ridge of %.1e is added", what, added)
            system.diagonal().add_(added)
            lam += added
            smallest, largest = _extremes(system)
        # B is symmetric and positive definite; its Cholesky factor is more accurate than an inverse
        solved = torch.cholesky_solve(rows.inputs.T, torch.linalg.cholesky(system)).T
        return cls(rows, rows.weights[:, None] * solved, largest / smallest, lam)

    def edited(self, weight: Tensor, rule: Rule = "replace") -> Tensor:
        """Return W* of a map W (m, n), in double precision."""
        before = weight.double()
        # W + sum_i w_i (v_i - W c_i) (B^-1 c_i)^T
        asked = values(before, self.rows, rule) - self.rows.inputs @ before.T
        return before + asked.T @ self.solved


def values(weight: Tensor, rows: Rows, rule: Rule) -> Tensor:
    """Return v_i, (R, m), of a map (m, n) in double precision."""
    guided = rows.guides @ weight.T
    if rule == "replace":
        return guided
    now = rows.inputs @ weight.T
    along, square = (guided * now).sum(dim=1), now.square().sum(dim=1)
    if rule == "projected_jointly":
        along, square = (_summed(part, rows.prompts) for part in (along, square))
    return guided - (along / square.clamp(min=torch.finfo(square.dtype).tiny))[:, None] * now


def _summed(parts: Tensor, prompts: Tensor) -> Tensor:
    """Return the sum over the rows of each row's prompt, (R,)."""
    total = parts.new_zeros(int(prompts.max()) + 1).index_add(0, prompts, parts)
    return total[prompts]


def _extremes(system: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue of a symmetric matrix."""
    eigenvalues = torch.linalg.eigvalsh(system)
    return float(eigenvalues[0]), float(eigenvalues[-1])
