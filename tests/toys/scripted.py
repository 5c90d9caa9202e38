"""Real models whose likelihood and samples are known in closed form."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset, Split
from unlearn.evaluators.base import Evaluation, RunFacts
from unlearn.models.base import Wrapper


class Pixels(Wrapper):
    """Independent Gaussian pixels: log p(x) = sum of log N(x; mean, std^2) over grey levels taken as numbers."""

    family: ClassVar[str] = "flow"

    def __init__(self, mean: Tensor | float, std: float, shape: tuple[int, ...] = (1, 8, 8), levels: int = 17) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.as_tensor(mean).float().expand(shape).clone())
        self.std = nn.Parameter(torch.tensor(float(std)))
        self.levels = levels
        self.temperature = 1.0
        self.items: list[int] = []  # asked for, to count the work

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return log p(x), (B,)."""
        self.items.extend(batch["id"].tolist())
        r = (batch["image"].double() - self.mean) / self.std
        return (-r.square() / 2 - self.std.log() - math.log(2 * math.pi) / 2).flatten(1).sum(1)

    def dimensions(self, batch: Batch) -> Tensor:
        """Return the number of pixels, (B,)."""
        return torch.full_like(batch["id"], self.mean.numel())

    def sample(self, ids: Tensor, randomness: Randomness) -> Batch:
        """Draw pixels, rounded down and cut to the grey levels."""
        self.items.extend(ids.tolist())
        drawn = self.mean + self.temperature * self.std * randomness.normal(ids, tuple(self.mean.shape))
        return {"id": ids, "image": drawn.floor().clamp(0, self.levels - 1).to(torch.uint8)}

    def save_pretrained(self, folder: Path) -> None:
        """Write the weights."""
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read the weights."""
        weights = load_file(folder / "model.safetensors")
        return cls(weights["mean"], weights["std"].item())


class Copier(Wrapper):
    """Draws real images: sample i is the item ``order[i % len(order)]`` of a dataset."""

    family: ClassVar[str] = "flow"

    def __init__(self, dataset: Dataset, order: Tensor) -> None:
        super().__init__()
        self.dataset = dataset
        self.register_buffer("order", order)

    def sample(self, ids: Tensor, randomness: Randomness) -> Batch:
        """Copy the items."""
        return {"id": ids, "image": self.dataset.batch(self.order[ids % len(self.order)])["image"]}

    def save_pretrained(self, folder: Path) -> None:
        """Write the order."""
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Not used: the data are not stored."""
        raise NotImplementedError


def evaluation_of(models: dict[str, Any], splits: dict[str, Split], seed: int = 0, **run: Any) -> Evaluation:
    """Return what the engine hands to an evaluator."""
    return Evaluation(models, splits, Randomness(seed, "evaluate"), torch.device("cpu"), RunFacts(**run), seed)


def value(records: Any, metric: str, **wanted: str) -> float:
    """Return the value of the one record that matches; ``about`` keys count like fields."""
    found = [
        r
        for r in records
        if r.metric == metric and all(r.about.get(k, getattr(r, k, None)) == w for k, w in wanted.items())
    ]
    assert len(found) == 1, f"{metric} {wanted}: {len(found)} records"
    return found[0].value


class Obedient(Wrapper):
    """Draws, for each item that it is told, the image of the item that a rule names: (sample ids, items) -> items."""

    family: ClassVar[str] = "diffusion"

    def __init__(self, dataset: Dataset, rule: Callable[[Tensor, Tensor], Tensor] = lambda ids, items: items) -> None:
        super().__init__()
        self.dataset = dataset
        self.rule = rule
        self.told: list[int] = []  # items, to see what was asked for

    def sample(self, ids: Tensor, randomness: Randomness, like: Batch) -> Batch:
        """Copy the items of the rule."""
        self.told.extend(like["id"].tolist())
        return {"id": ids, "image": self.dataset.batch(self.rule(ids, like["id"]))["image"]}

    def save_pretrained(self, folder: Path) -> None:
        """Not used: the data are not stored."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Not used: the data are not stored."""
        raise NotImplementedError
