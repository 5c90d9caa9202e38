"""What a language model predicts at the answer tokens of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """A language model's logits at the answer tokens of a batch, N of them in all.

    Args:
        logits: (N, V), in single precision or better, with gradient: of the position before each answer token.
        targets: (N,) int64, the answer tokens.
        row: (N,) int64, ascending: which item of the batch each belongs to.
        size: number of items, B; an item without answer tokens has no row.
    """

    logits: Tensor
    targets: Tensor
    row: Tensor
    size: int

    def log_probs(self) -> Tensor:
        """Return log p of each answer token, (N,), in nats."""
        # log softmax at the target alone
        chosen: Tensor = self.logits.gather(1, self.targets[:, None]).squeeze(1)
        return chosen - self.logits.logsumexp(dim=1)

    @property
    def lengths(self) -> Tensor:
        """Return the number of answer tokens per item, (B,) int64."""
        return torch.bincount(self.row, minlength=self.size)

    @property
    def places(self) -> Tensor:
        """Return the position of each answer token within its answer, (N,) int64, from 0."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.row), device=self.row.device) - starts[self.row]

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum of values (N,) per item, (B,)."""
        return values.new_zeros(self.size).index_add(0, self.row, values)

    def means(self, values: Tensor) -> Tensor:
        """Return the mean of values (N,) per item, (B,); 0 for an item without answer tokens."""
        return self.sums(values) / self.lengths.clamp(min=1)
