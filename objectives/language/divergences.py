"""f-divergences in their variational form: what FLAT maximises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG2 = math.log(2)


class Divergence(NamedTuple):
    """A divergence D_f(P || Q) = sup_T E_P[T] - E_Q[f*(T)] with T = g(v).

    Attributes:
        f: the convex function, f(1) = 0, of a density ratio.
        activation: g, increasing, from all numbers to the domain of f*.
        conjugate: f*, the convex conjugate of f, of T.
    """

    f: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]


def _jeffrey_conjugate(t: Tensor) -> Tensor:
    """Return f*(t) = w + 1/w + t - 2 with w = W(e^(1 - t)), Lambert's function; w solves w + log w = 1 - t."""
    start = (1 - t).detach()
    w = torch.where(start > 1, start - start.clamp(min=1).log(), start.clamp(max=1).exp() / 2).clamp(min=1e-30)
    for _ in range(20):
        w = w * (1 + start - w.log()) / (1 + w)  # Newton's step, which stays positive
    w = w * (1 + (1 - t) - w.log()) / (1 + w)  # once more, with the gradient
    return w + 1 / w + t - 2


DIVERGENCES: dict[str, Divergence] = {
    "total_variation": Divergence(lambda u: (u - 1).abs() / 2, lambda v: torch.tanh(v) / 2, lambda t: t),
    "jensen_shannon": Divergence(
        lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        lambda v: _LOG2 - F.softplus(-v),
        lambda t: -torch.log(2 - t.exp()),
    ),
    "pearson": Divergence(lambda u: (u - 1).square(), lambda v: v, lambda t: t.square() / 4 + t),
    "kl": Divergence(lambda u: u * u.log(), lambda v: v, lambda t: torch.exp(t - 1)),
    "reverse_kl": Divergence(lambda u: -u.log(), lambda v: -torch.exp(-v), lambda t: -1 - torch.log(-t)),
    "jeffrey": Divergence(lambda u: (u - 1) * u.log(), lambda v: v, _jeffrey_conjugate),
    "squared_hellinger": Divergence(
        lambda u: (u.sqrt() - 1).square(), lambda v: 1 - torch.exp(-v), lambda t: t / (1 - t)
    ),
    "neyman": Divergence(
        lambda u: (1 - u).square() / u, lambda v: 1 - torch.exp(-v), lambda t: 2 - 2 * torch.sqrt(1 - t)
    ),
}
"""Nowozin et al., f-GAN, 2016, tables 1 and 6. arXiv:1606.00709"""

RELEASED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "reverse_kl": (lambda v: -torch.exp(v), lambda v: -1 - v),
    "jeffrey": (lambda v: v, lambda v: v + v.square() / 4 + v**3 / 16),
    "squared_hellinger": (lambda v: 1 - torch.exp(v), lambda v: (1 - torch.exp(v)) / torch.exp(v)),
    "neyman": (lambda v: 1 - torch.exp(v), lambda v: 2 - 2 * torch.sqrt(1 - v)),
}
"""g(v) and f*(g(v)) as FLAT's released code writes them, where that differs. In three of them g decreases, so that the
loss lowers the template and, but for Neyman's, raises the forget answer; Jeffrey's is a Taylor polynomial."""
