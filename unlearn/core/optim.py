"""Learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

from unlearn.config.schema import Optim


def learning_rate(optim: Optim, step: int) -> float:
    """Return the rate of a step, counted from 0; ``lr`` itself in steps below 0, in which a network warms up.

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
    rise = optim.warmup * optim.steps
    if step < rise:
        return optim.lr * (step + 1) / (rise + 1)
    done = (step - rise) / (optim.steps - rise)
    return {
        "constant": optim.lr,
        "cosine": _cosine(optim.lr, 0.0, done),
        "linear": optim.lr * (1 - done),
    }[optim.schedule]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
