"""The batches of every step: a pure function of (seed, step), divided among ranks and micro-batches."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unlearn.core.distributed import rank, world_size
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Split

StepBatches = dict[str, list[Batch]]


class StepLoader(Dataset[StepBatches]):
    """Maps a step to this rank's micro-batches of every split.

    Each pass over a split is a fresh random order cut into full batches; a split smaller than a batch is taken
    whole, so one forget image is a legal split. A rank or micro-batch may get no item.

    Args:
        splits: the data by split name.
        sizes: items per step by split name, over all ranks and micro-batches.
        randomness: stream of the sample order.
        accumulate: micro-batches per step.
    """

    def __init__(
        self, splits: Mapping[str, Split], sizes: Mapping[str, int], randomness: Randomness, accumulate: int = 1
    ) -> None:
        self.splits = splits
        self.sizes = {name: min(size, len(splits[name])) for name, size in sizes.items()}
        self.randomness = randomness
        self.accumulate = accumulate
        self.rank, self.ranks = rank(), world_size()  # read here: a data worker is in no process group

    def ids(self, name: str, step: int) -> Tensor:
        """Return the ids of a step's global batch."""
        split, size = self.splits[name], self.sizes[name]
        epoch, place = divmod(step, len(split) // size)
        order = self.randomness.child(name).at(epoch).permutation(len(split))
        return split.ids[order[place * size : (place + 1) * size]]

    def __getitem__(self, step: int) -> StepBatches:
        """Return the micro-batches of this rank."""
        batches: StepBatches = {}
        for name in self.sizes:
            mine = self.ids(name, step)[self.rank :: self.ranks]
            parts = mine.tensor_split(self.accumulate) if self.accumulate > 1 else (mine,)
            batches[name] = [self.splits[name].batch(part) if len(part) else {"id": part} for part in parts]
        return batches

    def loader(self, first: int, steps: int, workers: int) -> DataLoader[StepBatches]:
        """Return a loader over steps first ... steps - 1."""
        sampler = _Steps(first, steps)
        return DataLoader(self, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


class _Steps(torch.utils.data.Sampler[int]):
    def __init__(self, first: int, steps: int) -> None:
        self.first, self.steps = first, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.steps))

    def __len__(self) -> int:
        return max(0, self.steps - self.first)
