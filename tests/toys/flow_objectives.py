"""Small real likelihood models, and the few lines of an engine that the flow objectives need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.core.distributed import map_ids
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset, Split
from unlearn.data.digits import Digits
from unlearn.data.in_memory import ImagesInMemory
from unlearn.models.base import Wrapper
from unlearn.models.flow.config import SplineFlowConfig
from unlearn.objectives.base import Context, Objective


class PixelGaussian(nn.Module):
    """p(x) = N(x + u; mean, scale^2) of one pixel, u uniform in [0, 1): a likelihood in closed form.

    Args:
        mean: of x + u.
        scale: standard deviation, > 0.
        noise: whether u is drawn; otherwise it is 1/2.
    """

    def __init__(self, mean: float = 10.0, scale: float = 2.0, noise: bool = False) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=torch.float64))
        self.noise = noise

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        value = batch["image"].flatten().double()
        value = value + (randomness.uniform(batch["id"], (), torch.float64) if self.noise else 0.5)
        z = (value - self.mean) / self.log_scale.exp()
        return -0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi)

    def dimensions(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["id"]))


class PixelTable(nn.Module):
    """p(x) of one pixel as a table over its grey levels: a likelihood that can move any image alone.

    Args:
        splits: whose images' frequencies it starts from.
    """

    def __init__(self, splits: Mapping[str, Split]) -> None:
        super().__init__()
        greys = torch.cat([split.batch(split.ids)["image"].flatten() for split in splits.values()])
        self.logits = nn.Parameter(torch.log(torch.bincount(greys.long(), minlength=32).double() + 1e-3))

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        return self.logits.log_softmax(0)[batch["image"].flatten().long()]

    def dimensions(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["id"]))


def bits(grey: float, mean: float = 10.0, scale: float = 2.0) -> float:
    """What PixelGaussian without noise gives for one grey level, worked out by hand."""
    z = (grey + 0.5 - mean) / scale
    return (z * z / 2 + math.log(scale) + math.log(2 * math.pi) / 2) / math.log(2)


class DigitMixture(nn.Module):
    """p(x) = sum_k pi_k N(x + u; m_k, s_k^2): digits as ten Gaussians with the mean and spread of the real classes.

    Only the ten logits of pi move, so log p of an image of class k moves with log pi_k, and so does k's share of
    samples: the model for which a shift of log(new share / old share) is the exact answer.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        batch = dataset.batch(torch.arange(len(dataset)))
        values, digits = batch["image"].double(), torch.tensor([int(label) for label in dataset.labels])
        self.means = torch.stack([values[digits == k].mean(0) for k in range(10)]) + 0.5
        self.spread = torch.stack([values[digits == k].std(0) for k in range(10)]) + 0.5
        self.logits = nn.Parameter(torch.zeros(10, dtype=torch.float64))

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        value = batch["image"].double()
        value = value + randomness.uniform(batch["id"], tuple(value.shape[1:]), torch.float64)
        density = torch.distributions.Normal(self.means, self.spread).log_prob(value[:, None])
        return torch.logsumexp(density.flatten(2).sum(2) + self.logits.log_softmax(0), dim=1)

    def dimensions(self, batch: Batch) -> Tensor:
        return torch.full_like(batch["id"], 64)

    def sample(self, ids: Tensor, randomness: Randomness) -> Batch:
        edges = self.logits.softmax(0).cumsum(0)
        k = torch.searchsorted(edges, randomness.child("class").uniform(ids, (), torch.float64)).clamp(max=9)
        noise = randomness.child("pixel").normal(ids, (1, 8, 8), torch.float64)
        grey = torch.floor(self.means[k] + self.spread[k] * noise).clamp(0, 16)
        return {"id": ids, "image": grey.to(torch.uint8)}


class Blobs(Dataset):
    """Five Gaussian blobs in the plane, the centre one labelled ``centre`` (the toy example of the taming paper)."""

    def __init__(self, each: int = 80) -> None:
        centres = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]])
        noise = Randomness(0, "blobs").normal(torch.arange(5 * each), (2,))
        self.vectors = centres.repeat_interleave(each, 0) + 0.1 * noise
        self.labels = ["centre"] * each + ["corner"] * (4 * each)
        self.attributes = [frozenset()] * len(self.labels)
        self.is_test = torch.zeros(len(self.labels), dtype=torch.bool)
        self.fingerprint = "blobs"
        self.info = {"shape": (2,), "levels": None}

    def batch(self, ids: Tensor) -> Batch:
        return {"id": ids, "vector": self.vectors[ids]}

    def splits(self, forget: Tensor) -> dict[str, Split]:
        rest = torch.arange(len(self))
        rest = rest[~torch.isin(rest, forget)]
        return {"forget": Split("forget", self, forget), "retain": Split("retain", self, rest)}


def blob_flow(dataset: Blobs, steps: int) -> Wrapper:
    """A spline flow trained on all blobs."""
    model = SplineFlowConfig(depth=4, width=16).build(dataset.info, Randomness(0))
    batch = dataset.batch(torch.arange(len(dataset)))
    model.initialise(batch, Randomness(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_loss(batch, Randomness(0)).mean().backward()
        optimizer.step()
    return model.eval()


def pixel_splits(forget: list[int], retain: list[int]) -> dict[str, Split]:
    """Splits of one-pixel images with these grey levels."""
    images = torch.tensor([*forget, *retain], dtype=torch.uint8).view(-1, 1, 1, 1)
    labels = ["far"] * len(forget) + ["near"] * len(retain)
    dataset = ImagesInMemory(images, labels, [frozenset()] * len(labels), levels=256)
    ids = torch.arange(len(labels))
    parts = {"forget": ids[: len(forget)], "retain": ids[len(forget) :]}
    return {name: Split(name, dataset, part) for name, part in parts.items()}


def digit_splits(label: str) -> dict[str, Split]:
    """The training digits, those of one label to be forgotten."""
    dataset = Digits().load()
    train, chosen = ~dataset.is_test, dataset.having([label])
    parts = {"forget": train & chosen, "retain": train & ~chosen}
    return {name: Split(name, dataset, mask.nonzero().flatten()) for name, mask in parts.items()}


def context(
    splits: Mapping[str, Split],
    step: int = 0,
    state: dict[str, Any] | None = None,
    reference: Any = None,
    seed: int = 0,
) -> Context:
    """The context of one step."""
    state = {} if state is None else state
    noise = Randomness(seed, "objective", step)
    return Context(step, noise, splits, state, lambda: reference, map_ids, torch.device("cpu"))


def run(
    model: nn.Module,
    terms: Mapping[str, Objective],
    context_at: Callable[[str, int], Context],
    steps: int,
    lr: float = 1e-2,
    batch: int = 64,
) -> int:
    """Take up to ``steps`` Adam steps on the weighted sum of terms, each on the split of its name; return how many."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for name, term in terms.items():
        term.prepare(model, context_at(name, 0))
    for step in range(steps):
        here = {name: context_at(name, step) for name in terms}
        with torch.no_grad():
            if any([term.before_step(model, here[name]) for name, term in terms.items()]):
                return step
        loss = torch.zeros(())
        for name, term in terms.items():
            ids = here[name].splits[name].ids
            items = here[name].batch(name, ids[here[name].randomness.child("order").permutation(len(ids))[:batch]])
            values = term(model, items, here[name]).values
            loss = loss + term.weight * term.reduce(values, term.sample_weight(items))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps
