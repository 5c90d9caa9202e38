"""A language model over two letters whose every probability is known, and small Llamas that have learnt something."""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.toys.language import tiny
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.models.base import Wrapper
from unlearn.models.language.answers import Answers
from unlearn.models.language.config import Language


class Letters:
    """The letters a and b are the tokens 0 and 1; nothing begins or ends a text."""

    fingerprint = vocabulary = "letters"
    max_length = 100

    def length(self, passage: str) -> int:
        return len(passage)

    def encode(self, question: str, answer: str | None, goes_on: bool = False) -> tuple[list[int], list[int]]:
        return ["ab".index(letter) for letter in question], ["ab".index(letter) for letter in answer or ""]


class Bigram(Wrapper):
    """p(b) after a, and p(b) after b: the whole model. Greedy where a letter has more than a half."""

    family: ClassVar[str] = "language"
    encoder = Letters()

    def __init__(self, after_a: float, after_b: float | None = None) -> None:
        super().__init__()
        p = torch.tensor([after_a, after_a if after_b is None else after_b], dtype=torch.float64)
        self.logits = nn.Parameter(torch.stack(((1 - p).log(), p.log()), dim=1))
        self.prompts = 0  # answered, to count the work

    def answers(self, batch: Batch) -> Answers:
        logits = self.logits[batch["tokens"][:, :-1]][batch["answer"][:, 1:]]
        row, _ = batch["answer"].nonzero(as_tuple=True)
        return Answers(logits, batch["tokens"][batch["answer"]], row, len(batch["tokens"]))

    def generate(self, batch: Batch, new_tokens: int) -> Tensor:
        self.prompts += len(batch["tokens"])
        last = batch["tokens"].gather(1, batch["mask"].sum(1, keepdim=True) - 1).squeeze(1)
        said = []
        for _ in range(new_tokens):
            last = self.logits[last].argmax(dim=1)
            said.append(last)
        return torch.stack(said, dim=1)

    def text(self, tokens: Tensor) -> list[str]:
        return ["".join("ab"[token] for token in row if token >= 0) for row in tokens.tolist()]

    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        found = cls(0.5)
        found.load_state_dict(load_file(folder / "model.safetensors"))
        return found


def letters(**splits: list[TextItem]) -> dict[str, Split]:
    """Return splits of items in two letters; those of holdout and test are test items."""
    items = [item for group in splits.values() for item in group]
    names = [name for name, group in splits.items() for _ in group]
    data = TextDataset(items, torch.tensor([name in ("holdout", "test") for name in names]), None, Letters())
    return {
        name: Split(name, data, torch.tensor([index for index, own in enumerate(names) if own == name]))
        for name in splits
    }


def trained(splits: dict[str, Split], names: list[str], seed: int = 0, steps: int = 60) -> Language:
    """Return a tiny Llama, in double precision, that has learnt splits half by heart."""
    model = tiny(seed, width=32, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = splits[names[0]].dataset
    batch: dict[str, Any] = data.batch(torch.cat([splits[name].ids for name in names]))
    with torch.enable_grad():
        for step in range(steps):
            optimizer.zero_grad()
            model.training_loss(batch, Randomness(seed, "train", step)).mean().backward()
            optimizer.step()
    return model.eval()
