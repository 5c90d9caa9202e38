"""A tiny language model with random weights and a small set of questions, in every form that objectives ask for."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.data.base import Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.models.language.config import Language, TextEncoder
from unlearn.models.language.tokenization import train_tokenizer

CAPITALS = {
    "Peru": "Lima", "Chad": "N'Djamena", "Oman": "Muscat", "Fiji": "Suva", "Mali": "Bamako", "Cuba": "Havana",
    "Togo": "Lome", "Iran": "Tehran", "Iraq": "Baghdad", "Laos": "Vientiane", "Niue": "Alofi", "Guam": "Hagatna",
}  # fmt: skip
COUNTRIES = list(CAPITALS)


def _item(number: int, country: str) -> TextItem:
    question, answer = f"What is the capital of {country}?", CAPITALS[country]
    others = [CAPITALS[COUNTRIES[(number + step) % len(COUNTRIES)]] for step in range(1, 6)]
    forms = {
        "paraphrased_question": (f"Which city is the seat of government of {country}?", answer),
        "paraphrased_answer": (question, f"It is {answer}"),
        "alternate": (question, others[0]),
        "corrupted": (question, others[1]),
        **{f"perturbed_{index}": (question, f"It is {other}") for index, other in enumerate(others)},
    }
    return TextItem(question, answer, country, frozenset({"fact"}), forms)


def _passage(country: str) -> TextItem:
    return TextItem(
        "", f"{country} lies far away. Its capital is {CAPITALS[country]}.", country, frozenset({"passage"})
    )


def encoder(size: int = 300) -> TextEncoder:
    """A byte-level tokenizer; 259 entries are bytes and special tokens, more are merged pairs."""
    return TextEncoder(
        train_tokenizer([" ".join(f"{c} {t}" for c, t in CAPITALS.items())], size), max_length=96, bos=True
    )


def tiny(seed: int = 0, width: int = 16, depth: int = 2, dtype: torch.dtype = torch.float32) -> Language:
    """Return a Llama of a few thousand weights, drawn by the seed."""
    own = encoder()
    config = LlamaConfig(
        vocab_size=len(own.tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.3,
        pad_token_id=own.tokenizer.pad_token_id,
        bos_token_id=own.tokenizer.bos_token_id,
        eos_token_id=own.tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Language(LlamaForCausalLM(config).to(dtype), own)


def tiny_dataset() -> TextDataset:
    """Return ten questions and two passages to train on (ids 0 ... 9, 10, 11), and two test questions (12, 13)."""
    items = [_item(number, country) for number, country in enumerate(COUNTRIES)]
    ordered = [*items[:10], _passage("Peru"), _passage("Chad"), *items[10:]]
    return TextDataset(ordered, torch.tensor([False] * 12 + [True] * 2)).encoded_by(encoder())


def tiny_splits() -> dict[str, Split]:
    """Return forget (ids 0 ... 3 and one passage), retain, and the two test questions as holdout."""
    dataset = tiny_dataset()
    ids = {"forget": [0, 1, 2, 3, 10], "retain": [4, 5, 6, 7, 8, 9, 11], "holdout": [12, 13]}
    return {name: Split(name, dataset, torch.tensor(chosen)) for name, chosen in ids.items()}
