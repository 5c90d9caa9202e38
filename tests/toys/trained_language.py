"""Tiny language models that really remember: trained for a second on some items of the small data set."""

from collections.abc import Sequence
from functools import cache

import torch

from tests.toys.language import encoder, tiny, tiny_dataset
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.evaluators.base import Evaluation
from unlearn.models.language.config import Language, TextEncoder

ALL, RETAINED, WRONG = tuple(range(12)), (4, 5, 6, 7, 8, 9, 11), (0, 1, 2, 3)
"""All training items, those that tiny_splits retains, and forget questions."""


def fit(model: Language, batches: Sequence[dict], steps: int, lr: float = 1e-2) -> Language:
    """Train a model in place on whole batches."""
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            loss = torch.stack([model.training_loss(batch, Randomness(0)).mean() for batch in batches]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@cache
def remembering(ids: tuple[int, ...] = ALL, wrong: tuple[int, ...] = (), seed: int = 0) -> Language:
    """Return a model that knows items by heart, some of them in their corrupted form. Nobody may change it."""
    data = tiny_dataset()
    batches = [data.batch(torch.tensor(ids))]
    if wrong:
        batches.append(data.form("corrupted", torch.tensor(wrong)))
    return fit(tiny(seed), batches, 100)


def family(size: int = 3) -> TextDataset:
    """Return questions about three people, ``size`` of each, so that labels have several facts."""
    topics = {"job": "a baker", "pet": "a dog", "car": "a van", "hat": "a cap", "cup": "a mug"}
    items = [
        TextItem(
            f"What is the {topic} of {name}?",
            f"{thing} {number}",
            name,
            forms={"paraphrased_question": (f"{name} has what {topic}?", f"{thing} {number}")},
        )
        for number, name in enumerate(("Ann", "Bob", "Cid"))
        for topic, thing in list(topics.items())[:size]
    ]
    wide = TextEncoder(encoder().tokenizer, max_length=240)
    return TextDataset(items, torch.zeros(len(items), dtype=torch.bool), encoder=wide)


def evaluation_on(data: TextDataset, forget: Sequence[int], seed: int = 0, **models: Language) -> Evaluation:
    """Return what the engine hands to an evaluator that looks at forget items."""
    splits = {"forget": Split("forget", data, torch.tensor(list(forget)))}
    return Evaluation(models, splits, Randomness(seed, "evaluate"), torch.device("cpu"), seed=seed)
