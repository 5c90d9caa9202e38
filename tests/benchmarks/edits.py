"""UCE on the cross-attention of Stable Diffusion 1.5's shape, against an explicit inverse for each layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unlearn.objectives.edits.ridge_regression import Kept, Rows
from unlearn.objectives.edits.uce import UCE

WIDTH = 768
"""Values of an encoded token of Stable Diffusion 1."""

LAYERS = {320: 5, 640: 5, 1280: 6}
"""Blocks with cross-attention by their width, each with a map to keys and one to values: two on the way down, three on
the way up at the first three sizes, and one in the middle."""

CONCEPTS, KEPT, TOKENS = 10, 100, 77
ROUNDS = 3
LAM = 0.5


class CrossAttention(nn.Module):
    """The maps alone: nothing else of the model is read or written by the edit."""

    def __init__(self) -> None:
        super().__init__()
        widths = [width for width, count in LAYERS.items() for _ in range(2 * count)]
        self.maps = nn.ModuleList(nn.Linear(WIDTH, width, bias=False) for width in widths)

    def named(self) -> dict[str, nn.Linear]:
        """Return the maps by name."""
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, nn.Linear)}


def textbook(layers: Mapping[str, nn.Linear], c: Tensor, g: Tensor, r: Tensor) -> dict[str, Tensor]:
    """Return W* as the authors' code computes it, rows stacked and not looped over, in double precision."""
    found = {}
    for name, layer in layers.items():
        old = layer.weight.detach().double()
        a = LAM * old + (g @ old.T).T @ c + (r @ old.T).T @ r
        b = LAM * torch.eye(WIDTH, dtype=torch.float64) + c.T @ c + r.T @ r
        found[name] = a @ torch.inverse(b)
    return found


def ours(model: CrossAttention, c: Tensor, g: Tensor, r: Tensor) -> None:
    """Edit the maps in place; the sums over what is kept and the condition number are part of it."""
    kept = Kept.nothing(WIDTH)
    kept.add(r)
    UCE(lam=LAM).edit(model, model.named(), Rows(c, g, torch.ones(len(c)).double(), torch.arange(len(c))), kept)


def median_seconds(work: Callable[[], object]) -> float:
    """Return the median over rounds."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Print the ratio for one row a prompt, as UCE takes by default, and for a row a token."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for what, rows in (("one row a prompt", 1), ("a row a token", TOKENS)):
        c, g = (torch.randn(CONCEPTS * rows, WIDTH, dtype=torch.float64) for _ in range(2))
        r = torch.randn(KEPT * rows, WIDTH, dtype=torch.float64)
        model = CrossAttention()
        expected = textbook(model.named(), c, g, r)
        slow = median_seconds(lambda c=c, g=g, r=r, model=model: textbook(model.named(), c, g, r))  # type: ignore[misc]
        ours(model, c, g, r)
        for name, layer in model.named().items():
            torch.testing.assert_close(layer.weight.detach().double(), expected[name], atol=1e-5, rtol=1e-4)
        fast = median_seconds(lambda c=c, g=g, r=r, model=model: ours(model, c, g, r))  # type: ignore[misc]
        print(
            f"UCE, {CONCEPTS} concepts, {KEPT} kept prompts, {what}, {len(expected)} maps of SD 1.5's shape: "
            f"{fast:.2f} s against {slow:.2f} s with an inverse a layer: {slow / fast:.1f} x (goal 3)"
        )
