"""Diffusion models that paint what stands in their tables: a class, or the sum of the words of a prompt."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from tests.toys.scripted import evaluation_of
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Selection, Split
from unlearn.data.conditioned import Classes, Conditioned, Prompts
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits
from unlearn.evaluators.base import Evaluation
from unlearn.models.diffusion.settings import DiffusionSettings
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.feature_extractors.classifiers import features_for

DIGITS = tuple(str(digit) for digit in range(10))
WORDS = ("<start>", "<end>", *DIGITS, "dog", "cat", "hat")
LENGTH = 8


class ClassPainter(nn.Module):
    """Predicts the image of its class, whatever the noise."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding.from_pretrained(images.flatten(1), freeze=False)

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.class_embedding(class_labels).view_as(x),)


class WordPainter(UNet2DConditionModel):
    """Predicts black, with the ink of all words of the prompt."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.ink = nn.Parameter(torch.ones(()))

    def forward(
        self, x: Tensor, t: Tensor, states: Tensor, added_cond_kwargs: None, return_dict: bool
    ) -> tuple[Tensor]:
        return (self.ink * states.sum(dim=1).view_as(x) - 1,)


class WordTable(nn.Module):
    """A text encoder that looks words up and does nothing more."""

    def __init__(self, ink: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(ink, freeze=False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table  # type: ignore[return-value]

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.table(ids),)


class Splitter:
    """A tokenizer of whole words with the interface of transformers; the end fills."""

    model_max_length = LENGTH

    def __call__(self, prompts: list[str], **_: object) -> Mapping[str, Tensor]:
        rows = [[0, *(WORDS.index(word) for word in prompt.split()), 1] for prompt in prompts]
        return {"input_ids": torch.tensor([(row + [1] * LENGTH)[:LENGTH] for row in rows])}


@cache
def digits(told: str) -> Dataset:
    data = Digits().load()
    words = Classes(DIGITS) if told == "class" else Prompts(TextSide([], [Splitter()]).tokens)
    return Conditioned(data, words)


def threes(told: str) -> dict[str, Split]:
    """Return the splits that forget the threes, of digits that the judge reads rightly."""
    splits = make_splits(digits(told), Digits(forget=Selection(label=["3"])), Randomness(0, "splits"))
    net = features_for(digits(told).info)
    return {
        name: replace(
            split,
            ids=split.ids[
                (net.classify(split.batch(split.ids)["image"]) == net.known(split.dataset)[split.ids]).all(1)
            ],
        )
        for name, split in splits.items()
    }


@cache
def typical() -> Tensor:
    """Return the training digit of each class that is nearest to their mean, (10, 1, 8, 8) in [-1, 1]."""
    data = digits("class")
    found = []
    for name in DIGITS:
        images = data.batch(torch.nonzero(data.having([name]) & ~data.is_test).flatten())["image"].float() / 8 - 1
        found.append(images[(images - images.mean(0)).square().flatten(1).sum(1).argmin()])
    return torch.stack(found)


def class_painter(**drawn_as: str) -> Diffusion:
    """Return a model that paints a typical digit of each class, those that are named (``_3="8"``) as another's."""
    images = typical().clone()
    for name, other in drawn_as.items():
        images[int(name.removeprefix("_"))] = typical()[int(other)] if other else -1.0
    settings = DiffusionSettings((1, 8, 8), levels=17, classes=DIGITS, steps=2, guidance=1.0, drop=0.0)
    denoiser = ClassPainter(torch.cat([images, -torch.ones(1, 1, 8, 8)]))
    return Diffusion(denoiser, DDPMScheduler(prediction_type="sample"), settings)


def word_painter(**ink: Tensor) -> Diffusion:
    """Return a model whose words paint the ink of a typical digit, or that which is given (``_3=...``, ``dog=...``)."""
    table = torch.zeros(len(WORDS), 64)
    for number, name in enumerate(DIGITS):
        table[WORDS.index(name)] = typical()[number].flatten() + 1
    for word, given in ink.items():
        table[WORDS.index(word.removeprefix("_"))] = given.flatten()
    settings = DiffusionSettings((1, 8, 8), levels=17, steps=2, guidance=1.0, drop=0.0)
    text = TextSide([WordTable(table)], [Splitter()])
    return Diffusion(WordPainter(), DDPMScheduler(prediction_type="sample"), settings, text)


def ink(name: str) -> Tensor:
    """Return what a typical digit adds to black."""
    return typical()[int(name)] + 1


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def attacked(told: str, **models: Diffusion) -> Evaluation:
    """Return an evaluation of painters on the threes, each under its subject's name."""
    return evaluation_of(models, threes(told))
