"""The optimizer and its learning rate, which is a pure function of the step: resuming needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unlearn.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt, check_ranges

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass
class Optim:
    """Optimizer settings.

    Args:
        name: optimizer.
        lr: learning rate, > 0.
        betas: Adam's (beta1, beta2).
        weight_decay: decoupled for adamw, added to the gradient otherwise, >= 0.
        momentum: for sgd.
        steps: number of optimizer steps, >= 1 (an objective may stop earlier).
        batch: items per step from each split, over all ranks and micro-batches.
        forget_batch: items per step from forget, if it differs from ``batch``.
        accumulate: micro-batches per step: less memory, same result.
        clip: largest gradient norm after combination; null disables clipping.
        schedule: constant, cosine to zero, linear to zero, or onecycle.
        warmup: share of the steps over which the rate rises, in [0, 1).
        ema: EMA decay; if set, the averaged weights are the result. null disables it.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    momentum: float = 0.0
    steps: PositiveInt = 100
    batch: PositiveInt = 64
    forget_batch: PositiveInt | None = None
    accumulate: PositiveInt = 1
    clip: PositiveFloat | None = None
    schedule: Literal["constant", "cosine", "linear", "onecycle"] = "constant"
    warmup: float = 0.0
    ema: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, share in (("momentum", self.momentum), ("warmup", self.warmup)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; it must lie in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}; both must lie in [0, 1)")
        if self.steps >= 2**32:  # the counter of unlearn.core.randomness has 32 bits
            raise ValueError(f"steps is {self.steps}; it must be below {2**32}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie between 0 and 1, or be null for none")


def learning_rate(optim: Optim, step: int) -> float:
    """Return the learning rate of a step, counted from 0; steps below 0 (a warm-up) use ``lr``.

    ``onecycle`` rises by a cosine from lr / 25 over the first 30 % (or ``warmup``) and falls by a cosine to
    lr / 250,000 (Smith and Topin, Super-Convergence, 2018; rates as in PyTorch's OneCycleLR).
    """
    if step < 0:
        return optim.lr
    if optim.schedule == "onecycle":
        top = (optim.warmup or 0.3) * optim.steps - 1
        if step <= top:
            return _cosine(optim.lr / 25, optim.lr, step / top if top > 0 else 1.0)
        return _cosine(optim.lr, optim.lr / 250_000, (step - top) / (optim.steps - 1 - top))
    rise = optim.warmup * optim.steps  # need not be whole
    if step < rise:
        return optim.lr * (step + 1) / (rise + 1)
    done = (step - rise) / (optim.steps - rise)
    return {
        "constant": optim.lr,
        "cosine": _cosine(optim.lr, 0.0, done),
        "linear": optim.lr * (1 - done),
    }[optim.schedule]


def make_optimizer(optim: Optim, parameters: list[nn.Parameter]) -> Optimizer:
    """Return the optimizer that a recipe's ``optim`` names."""
    import torch  # only here: a recipe is read without torch

    if optim.name == "sgd":
        return torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.name]
    betas = (optim.betas[0], optim.betas[1])
    return kind(parameters, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay, fused=True)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
