"""Step time of the engine against a bare PyTorch loop of the same job, and of each combination against the sum."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn.config.recipe import load
from unlearn.config.schema import Trainer
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection, Split
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits
from unlearn.models.base import Wrapper
from unlearn.models.likelihood import bits_per_dim
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.flow.likelihood_ascent import LikelihoodAscent
from unlearn.objectives.surgery import GRU, MGDA, Combination, OneSided, PCGrad, WeightedSum
from unlearn.training.build import build_module
from unlearn.training.dataloader import StepLoader
from unlearn.training.fit import fit

STEPS, WARM, ROUNDS = 60, 10, 5
OPTIM = Optim(steps=STEPS, batch=64, lr=1e-5)


def main() -> None:
    """Print the ratios; each is the median over rounds that alternate the two sides."""
    splits = digits()
    threads = torch.get_num_threads()
    print(f"digits Glow of the default recipe, batch 64 + 64, median step over {ROUNDS} rounds, {threads} threads")
    ours, bare = alternate(lambda: engine(splits, WeightedSum()), lambda: bare_loop(splits))
    print(f"  engine {1e3 * ours:6.1f} ms   bare loop {1e3 * bare:6.1f} ms   ratio {ours / bare:.3f}")
    for combine in (PCGrad(), OneSided(), GRU(), MGDA()):
        other, plain = alternate(lambda c=combine: engine(splits, c), lambda: engine(splits, WeightedSum()))
        times = f"{1e3 * other:6.1f} ms   sum {1e3 * plain:6.1f} ms   ratio {other / plain:.3f}"
        print(f"  {type(combine).__name__:<10} {times}")


def alternate(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    """Return the median step time of both, run in turns so that a slow minute hits both."""
    times = [(first(), second()) for _ in range(ROUNDS)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def digits() -> dict[str, Split]:
    """The splits of the default recipe."""
    source = Digits(forget=Selection(label=["3"]))
    return make_splits(source.load(), source, Randomness(0, "splits"))


def model(splits: dict[str, Split]) -> Wrapper:
    """The default recipe's flow, untrained: a step costs the same."""
    flow = load("quickstart").model.build(splits["retain"].dataset.info, Randomness(0, "bench"))
    flow.initialise(splits["retain"].batch(splits["retain"].ids[:256]), Randomness(0, "initialise"))
    return flow


class Clock:
    """A term that does nothing but note when a step begins."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def step_time(self) -> float:
        """Return the median time between ticks after the warm-up."""
        gaps = [b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False)]
        return statistics.median(gaps[WARM:])


def engine(splits: dict[str, Split], combine: Combination) -> float:
    """Return the engine's seconds a step, with its curves, checkpoints and checks as in any run."""
    flow, clock = model(splits), Clock()
    terms: Any = {"forget": {"ascent": LikelihoodAscent(weight=0.1)}, "retain": {"loss": TrainingLoss()}}
    module = build_module(flow, splits, 0, **terms, optim=OPTIM, combine=combine)
    begin = module.on_train_batch_start

    def tick(*arguments: object) -> int | None:
        clock.ticks.append(time.perf_counter())
        return begin(*arguments)  # type: ignore[arg-type]

    module.on_train_batch_start = tick  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        fit(module, replace(Trainer(accelerator="cpu"), tensorboard=False), Path(folder), "bench")
    return clock.step_time()


def bare_loop(splits: dict[str, Split]) -> float:
    """Return the seconds a step of the loop that one would write by hand: same data, same noise, same optimizer."""
    flow, clock = model(splits).eval(), Clock()
    loader = StepLoader(splits, {"forget": 64, "retain": 64}, Randomness(0, "order"))
    optimizer = torch.optim.Adam(flow.parameters(), lr=OPTIM.lr)
    for step in range(STEPS):
        clock.ticks.append(time.perf_counter())
        batch = loader[step]
        loss: Tensor = -0.1 * bits_per_dim(flow, batch["forget"][0], Randomness(0, "f", step)).mean()
        loss = loss + flow.training_loss(batch["retain"][0], Randomness(0, "r", step)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return clock.step_time()
