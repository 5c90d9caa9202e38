"""Models and figures that plain transformers made: the same here as there."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from tests.toys.language import CAPITALS, encoder
from tests.toys.scripted import evaluation_of, value
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection, Split
from unlearn.data.muse import Muse
from unlearn.data.splits import make_splits
from unlearn.data.text import TextDataset, TextItem
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.text.membership import TextMembership
from unlearn.evaluators.text.memorization import Memorization
from unlearn.evaluators.text.tofu import TofuMetrics
from unlearn.models.language.wrapper import Language, TextEncoder

FACTS = {f"Question: What is the capital of {country}?\nAnswer:": f" {city}" for country, city in CAPITALS.items()}
POSITIONS = 128


def network(seed: int, tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    end = tokenizer.eos_token_id
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, embd_pdrop=0.0, **sizes)
        return GPT2LMHeadModel(config)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """As GPT-2's: one token begins and ends documents, and puts itself before no text."""
    made = encoder(400).tokenizer
    made.bos_token = made.eos_token
    return made


@cache
def trained() -> GPT2LMHeadModel:
    """A GPT-2 that knows the facts, trained by the loss of transformers on their text and its end alone."""
    model = network(0, tokenizer())
    rows = [
        tokenizer()(question + city + tokenizer().eos_token, add_special_tokens=False)
        for question, city in FACTS.items()
    ]
    width = max(len(row["input_ids"]) for row in rows)
    ids, labels = torch.zeros(2, len(rows), width, dtype=torch.int64)
    labels -= 100
    for place, row in enumerate(rows):
        ids[place, : len(row["input_ids"])] = labels[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=labels >= 0, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def facts(own: TextEncoder) -> dict[str, Split]:
    countries = list(CAPITALS.items())
    items = [TextItem(f"What is the capital of {country}?", city, country) for country, city in countries]
    data = TextDataset(items, torch.zeros(len(items), dtype=torch.bool), encoder=own)
    half = len(items) // 2
    return {
        "forget": Split("forget", data, torch.arange(half)),
        "retain": Split("retain", data, torch.arange(half, len(items))),
    }


def measured(bos: bool | None) -> Evaluation:
    own = TextEncoder(tokenizer(), max_length=POSITIONS, bos=bos)
    return evaluation_of({"target": Language(trained(), own)}, facts(own))


def test_a_gpt2_trained_by_plain_transformers_knows_what_it_was_taught() -> None:
    """Its NLL is that of transformers, and all answers are exact; with a token more before each text they are not."""
    own, records = measured(None), Memorization()(measured(None)).records
    wanted = []
    for question, city in FACTS.items():
        before, whole = (
            torch.tensor([tokenizer()(text, add_special_tokens=False)["input_ids"]])
            for text in (question, question + city + tokenizer().eos_token)
        )
        with torch.no_grad():
            log_p = trained()(input_ids=whole).logits[0, :-1].log_softmax(-1)
        tokens = log_p.gather(1, whole[0, 1:, None]).flatten()[before.shape[1] - 1 :]
        wanted.append(-tokens.mean().item())
    split = own.splits["forget"]
    answers = own.models["target"].answers(split.batch(split.ids))
    found = answers.means(-answers.log_probs())
    torch.testing.assert_close(found, torch.tensor(wanted[: len(split)]), rtol=1e-4, atol=1e-5)
    assert max(wanted) < 0.1
    assert value(records, "exact_memorization", subject="target", split="forget") == 1
    extra = measured(True)
    worse = extra.models["target"].answers(extra.splits["forget"].batch(split.ids))
    assert worse.means(-worse.log_probs()).mean() > 3 * found.mean()


def test_tofu_of_a_model_with_few_positions() -> None:
    """Answers are generated as far as the positions go: 200 tokens are asked for, and the model has 128 positions."""
    own = measured(None)
    records = TofuMetrics(new_tokens=200)(own).records
    assert value(records, "rouge_l_recall", subject="target", split="forget") == 1


def min_k(model: GPT2LMHeadModel, tokens: list[int]) -> float:
    """MUSE's score: the mean of the lowest int(.4 T) log-probabilities of a text's tokens."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    own = log_p.gather(1, torch.tensor(tokens)[1:, None]).flatten().sort().values
    return own[: int(0.4 * len(own))].mean().item()


def privleak(models: list[GPT2LMHeadModel], sides: list[list[list[int]]]) -> float:
    """100 (A - A_r) / A_r by scikit-learn: holdout texts are the members, as in MUSE's code."""
    areas = []
    for model in models:
        forget, holdout = ([min_k(model, tokens) for tokens in side] for side in sides)
        areas.append(roc_auc_score([0] * len(forget) + [1] * len(holdout), forget + holdout))
    return 100 * (areas[0] - areas[1]) / areas[1]


def test_privleak_of_muse_is_that_of_its_texts_alone(tmp_path: Path) -> None:
    """Against a computation with plain transformers and scikit-learn; an end token behind the texts changes it."""
    sentences = [f"The city of {city} in {country}, number {n}." for n, (country, city) in enumerate(CAPITALS.items())]
    texts = {"forget": sentences[::2], "holdout": sentences[1::2]}
    files = {
        "raw/forget": ["Some news."],
        "raw/retain1": ["Other news."],
        **{f"privleak/{s}": t for s, t in texts.items()},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    own = TextEncoder(tokenizer(), max_length=POSITIONS)
    data = Muse(path=str(tmp_path), chunk_tokens=16).load().encoded_by(own)
    networks = [trained(), network(3, tokenizer()).eval()]
    models = dict(zip(("unlearned", "retrained"), (Language(one, own) for one in networks), strict=True))
    splits = make_splits(data, Muse(forget=Selection(label=["forget"])), Randomness(0))
    records = TextMembership(gradient_items=0)(evaluation_of(models, splits)).records
    sides = [[tokenizer()(text, add_special_tokens=False)["input_ids"] for text in side] for side in texts.values()]
    wanted = privleak(networks, sides)
    assert value(records, "privleak", subject="unlearned") == pytest.approx(wanted, abs=1e-6)
    ended = privleak(networks, [[[*tokens, own.end] for tokens in side] for side in sides])
    assert not math.isclose(ended, wanted, abs_tol=0.5)
