"""Learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

from unlearn.schema import Optim


def learning_rate(optim: Optim, step: int) -> float:
    """Return the rate of a step, counted from 0.

    ``onecycle`` rises by a cosine from lr / 25 over the first 30 % (or ``warmup``) and falls by a cosine to
    lr / 250,000 (Smith and Topin, Super-Convergence, 2018; rates as in PyTorch's OneCycleLR).
    """
    onecycle = optim.schedule == "onecycle"
    rise = (optim.warmup or (0.3 if onecycle else 0.0)) * optim.steps
    if step < rise:
        if onecycle:
            return _cosine(optim.lr / 25, optim.lr, step / max(1.0, rise - 1))
        return optim.lr * (step + 1) / (rise + 1)
    done = min(1.0, (step - rise) / max(1.0, optim.steps - rise))
    if onecycle:
        return _cosine(optim.lr, optim.lr / 250_000, done)
    return {
        "constant": optim.lr,
        "cosine": _cosine(optim.lr, 0.0, done),
        "linear": optim.lr * (1 - done),
    }[optim.schedule]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
