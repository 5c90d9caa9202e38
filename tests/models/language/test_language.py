"""How text becomes tokens, what is cut, and that generation is greedy whatever a model's own settings say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.toys.language import encoder, tiny, tiny_dataset
from unlearn.core.errors import RecipeError
from unlearn.data.chunking import PackedDataset
from unlearn.data.text import TextItem
from unlearn.models.language.config import Language, TextEncoder, read_encoder


def test_generation_is_greedy_whatever_the_models_own_settings() -> None:
    model = tiny()
    batch = tiny_dataset().form("prompt", torch.arange(10))
    plain = model.generate(batch, 8)
    own = model.model.generation_config
    own.repetition_penalty, own.num_beams, own.no_repeat_ngram_size = 1.8, 3, 2
    assert torch.equal(model.generate(batch, 8), plain)
    assert model.model.generation_config is own
    tokens = batch["tokens"][:1, : int(batch["mask"][0].sum())]
    changed = model.model.generate(input_ids=tokens, max_new_tokens=8)[0, tokens.shape[1] :]  # the control
    assert changed.tolist() != plain[0, : len(changed)].tolist()


def test_a_tokenizer_that_marks_beginnings_of_words_marks_the_answer_once() -> None:
    words = {word: index for index, word in enumerate(["<s>", "</s>", "<unk>", "▁Who?", "▁", "▁Ann", "▁was", "▁it"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    own = TextEncoder(fast, "{question}", bos=True)
    assert own.encode("Who?", "Ann was it") == ([0, 3], [5, 6, 7, 1])
    apart = fast(" Ann was it", add_special_tokens=False)["input_ids"]
    assert apart != [5, 6, 7]  # the control: tokenised apart, another mark stands before the answer


def test_the_byte_level_answer_does_not_depend_on_the_question() -> None:
    own = encoder()
    assert own.encode("Who?", "Lima")[1] == own.encode("What is the capital of Peru?", "Lima")[1]


def test_pieces_of_a_longer_text_have_no_end() -> None:
    own = encoder()
    text = " ".join(["Lima lies by the sea, and Muscat does too."] * 5)
    packed = PackedDataset([TextItem("", text, "Peru", frozenset({"passage"}))], torch.tensor([False]), ["passage"], 40)
    read = packed.encoded_by(own)
    ends = [read.tokens(index)[1][-1] == own.end for index in range(len(read))]
    assert len(read) > 2 and ends == [False] * (len(read) - 1) + [True]
    assert "".join(item.answer for item in read.items) == text


def test_what_is_cut_is_said_and_what_is_cut_to_nothing_refused() -> None:
    data = tiny_dataset()
    assert data.remarks(torch.arange(10)) == []
    limit = sum(map(len, data.tokens(0))) - 1
    shorter = data.encoded_by(TextEncoder(encoder().tokenizer, max_length=limit))
    assert shorter.remarks(torch.tensor([0])) == [f"1 of 1 reach model.max_length={limit} and may be cut"]
    nothing = data.encoded_by(TextEncoder(encoder().tokenizer, max_length=8))
    with pytest.raises(RecipeError, match="Nothing is left of any answer"):
        nothing.remarks(torch.arange(10))


def test_models_and_tokenizers_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    tokenizer = encoder().tokenizer
    short = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(RecipeError, match=r"32 positions.*model.max_length=32"):
        Language(short, TextEncoder(tokenizer, max_length=33))
    Language(short, TextEncoder(tokenizer, max_length=32))
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(RecipeError, match="no end token"):
        TextEncoder(endless)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RecipeError, match="is a run directory"):
        read_encoder(tmp_path, None, None)
