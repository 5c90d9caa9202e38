"""The words that a new text model knows: those of its settings, or those of the data's captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from unlearn.config.schema import Pretrain
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.coloured_digits import ColouredDigits
from unlearn.data.in_memory import ImagesInMemory
from unlearn.experiment.model_store import training_key
from unlearn.models.diffusion.config import TextUNet

CAPTIONS = ("a red heart", "a blue heart", "one flag")
SMALL: dict[str, Any] = {"channels": (8, 16), "head_dim": 8, "text_width": 16}


def drawings(captions: Sequence[str]) -> ImagesInMemory:
    data = ImagesInMemory(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["x"] * 3, [frozenset()] * 3, 256)
    data.captions = captions  # type: ignore[attr-defined]
    return data


def key(config: TextUNet, captions: Sequence[str]) -> str:
    return training_key(config, Pretrain(), Split("train", config.read(drawings(captions)), torch.arange(3)))


def test_words_of_the_captions_make_the_tokenizer_of_data_and_model() -> None:
    config = TextUNet(words=None, **SMALL)
    data = config.read(drawings(CAPTIONS))
    assert data.info["words"] == ("a", "blue", "flag", "heart", "one", "red")
    tokens = data.batch(torch.arange(3))["tokens"]
    assert tokens[0, 0].tolist() == [0, 3, 8, 6, 1, 1, 1, 1]  # start, a, red, heart, end; 3 + the number of the word
    model = config.build(data.info, Randomness(0, "words"))
    assert model.text is not None and torch.equal(model.text.tokens(CAPTIONS), tokens)
    assert model.text.encoders[0].get_input_embeddings().num_embeddings == 3 + 6  # type: ignore[operator]
    assert model.text.tokens(["a green heart"])[0, 0, 2] == 2  # unknown
    with pytest.raises(RecipeError, match="'green'"):
        model.prompts(["a green heart"])


def test_a_trained_model_is_known_by_the_words_it_took() -> None:
    """The same words in another order make the same tokenizer; a further word makes another."""
    config = TextUNet(words=None, **SMALL)
    told = [
        config.conditioner(drawings(captions)) for captions in (CAPTIONS, CAPTIONS[::-1], (*CAPTIONS[:2], "two flag"))
    ]
    assert told[0].info() == told[1].info() != told[2].info()
    assert key(config, CAPTIONS) == key(config, CAPTIONS) != key(config, (*CAPTIONS[:2], "two flag"))
    assert key(config, CAPTIONS) != key(TextUNet(words=("a", "blue", "flag", "heart", "one", "red"), **SMALL), CAPTIONS)


def test_words_of_the_settings_say_all_of_themselves() -> None:
    """As before there was a choice: nothing but the hash of words and length stands in the key of a shipped model."""
    config = TextUNet()
    told = config.conditioner(ColouredDigits().load())
    assert told.info() == {"tokens": hashlib.sha256(repr((config.words, 8)).encode()).hexdigest()[:16]}
