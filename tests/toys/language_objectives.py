"""A language model of two tokens, whose every value can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.toys.term_bench import TermBench
from unlearn.data.base import Batch, Split
from unlearn.data.text import TextDataset, TextItem, refusals
from unlearn.models.language.wrapper import Language
from unlearn.objectives.base import Objective


class Parity:
    """An encoder of two tokens: a letter's code modulo 2, so that "a" is token 1 and "b" is token 0."""

    fingerprint = "parity"

    def encode(self, question: str, answer: str | None, goes_on: bool = False) -> tuple[list[int], list[int]]:
        return [ord(letter) % 2 for letter in question], [ord(letter) % 2 for letter in answer or ""]


class Bigram(Language):
    """p(next | previous) = softmax(W e_previous), with e the identity at first: a table of logits.

    Args:
        ones: p(token 1) after token 0 and after token 1.
    """

    def __init__(self, *ones: float) -> None:
        nn.Module.__init__(self)
        odds = torch.tensor(
            [math.log(p / (1 - p)) for p in (ones if len(ones) == 2 else ones * 2)], dtype=torch.float64
        )
        self.states = nn.Parameter(torch.eye(2, dtype=torch.float64))
        self.linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(torch.stack((torch.zeros(2), odds)))

    def answer_states(self, batch: Batch) -> Tensor:
        return self.states[batch["tokens"][:, :-1]][batch["answer"][:, 1:]]

    def head(self) -> nn.Module:
        return self.linear

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        return self.states[batch["tokens"]]

    def become(self, *ones: float) -> None:
        """Take another table; the parameters stay the same objects."""
        with torch.no_grad():
            self.linear.weight.copy_(Bigram(*ones).linear.weight)


def answers_of(*answers: str, alternate: str = "") -> TextDataset:
    """Items with the question "b" and these answers of letters a and b, and one alternate answer for all."""
    forms = {"alternate": ("b", alternate)} if alternate else {}
    items = [TextItem("b", answer, forms=forms) for answer in answers]
    return TextDataset(items, torch.zeros(len(items), dtype=torch.bool), encoder=Parity())


class Bench(TermBench):
    """One split of all items as the forget items, and as the retain items; terms prepared on the target.

    Args:
        folder: for the target's values.
        model: at first the target; there is no other.
        dataset: the items.
        objective: the term.
        split: which the term reads.
    """

    def __init__(self, folder: Path, model: Any, dataset: TextDataset, objective: Objective, split: str = "forget"):
        self.dataset = dataset
        ids = torch.arange(len(dataset))
        splits = {name: Split(name, dataset, ids) for name in ("forget", "retain")}
        super().__init__(folder, objective, model, None, splits, split)

    def value(self) -> float:
        """The value of the first item."""
        return self.values([0]).values[0].item()

    def gradient(self, item: int = 0) -> Tensor:
        """d value / d table of logits of one item, (2 next, 2 previous)."""
        self.model.zero_grad()
        self.values([item]).values.sum().backward()
        gradient: Tensor = self.model.linear.weight.grad.clone()
        return gradient


def refusal_counts(item: int = 0) -> tuple[int, int]:
    """How many tokens 1 and tokens 0 the refusal of an item has."""
    tokens = [ord(letter) % 2 for letter in refusals()[item % len(refusals())]]
    return sum(tokens), len(tokens) - sum(tokens)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
