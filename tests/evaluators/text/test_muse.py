"""What models say: in batches as one by one, and MUSE's two memorisation scores."""

import re
from functools import cache

import pytest
import torch

from tests.toys.language import tiny_dataset, tiny_splits
from tests.toys.scripted import evaluation_of, value
from tests.toys.text_models import Bigram, letters, trained
from unlearn.data.base import Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.evaluators.text.generation import continuations, generated
from unlearn.evaluators.text.metrics import rouge_l
from unlearn.evaluators.text.muse import MuseMetrics, until_stop
from unlearn.models.language.config import Language


@cache
def knows() -> Language:
    return trained(tiny_splits(), ["forget", "retain"], steps=120)


@cache
def knows_little() -> Language:
    return trained(tiny_splits(), ["retain"], seed=1, steps=30)


def alone(model: Language, prompt: list[int], new_tokens: int) -> list[int]:
    """One prompt, token by token, without a cache or padding."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + new_tokens:
        token = int(model.model(torch.tensor([tokens])).logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        tokens.append(token)
    said = tokens[len(prompt) :]
    return said + [-1] * (new_tokens - len(said))


def test_batches_say_what_one_by_one_says() -> None:
    """PromptSet of unlike length, padded on the left; padded on the right, as items are, something else comes out."""
    data, model = tiny_dataset(), knows()
    prompts = [data.tokens(item, "prompt")[0] for item in (0, 5, 1, 9)]
    prompts += [data.tokens(10)[1][:7], data.tokens(11)[1][:19]]
    assert len({len(prompt) for prompt in prompts}) > 3
    expected = [alone(model, prompt, 10) for prompt in prompts]
    for size in (1, 2, 6):
        assert continuations(model, prompts, 10, torch.device("cpu"), size).tolist() == expected
    assert len({tuple(said) for said in expected}) == 6
    width = max(map(len, prompts))
    padded = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    wrong = model.model.generate(input_ids=padded, max_new_tokens=10, do_sample=False, pad_token_id=0)[:, width:]
    assert wrong.tolist() != expected


def test_a_shorter_answer_is_the_beginning_of_a_longer_one() -> None:
    splits = letters(forget=[TextItem("a", "b"), TextItem("b", "b")], retain=[TextItem("a", "a")])
    evaluation = evaluation_of({"target": Bigram(0.9, 0.1)}, splits)
    model = evaluation.models["target"]
    assert generated(evaluation, "target", "forget", torch.tensor([1, 0]), 4).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert generated(evaluation, "target", "forget", torch.tensor([0]), 2).tolist() == [[1, 0]]
    assert model.prompts == 2
    assert generated(evaluation, "target", "retain", torch.tensor([2, 0]), 4).tolist() == [[1, 0, 1, 0]] * 2
    assert model.prompts == 3  # item 2 only


def test_rouge_by_hand() -> None:
    """The truth has 4 words, what is said 5; "the", "cat", "sat" are common and in order: 3/4, F1 2 x 3 / (4 + 5)."""
    assert rouge_l("The cat sat down.", "the black cat sat up", stemmer=False) == pytest.approx((3 / 4, 6 / 9))
    assert rouge_l("running", "runs", stemmer=True) == (1, 1)
    assert rouge_l("running", "runs", stemmer=False) == (0, 0)


@pytest.mark.parametrize(
    ("said", "kept"),
    [("Lima\n\nand more", "Lima"), ("Lima\nQuestion: what", "Lima"), ("LimaQuestion: x", "Lima"), ("\n\nLima", "")],
)
def test_answers_end_at_stops(said: str, kept: str) -> None:
    assert until_stop(said) == kept
    assert until_stop("Lima\nis far") == "Lima\nis far"


def f1(truth: str, said: str) -> float:
    """ROUGE-L F1, computed here: common words in order, twice over the words of both."""
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (truth, said))
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(a) + len(b)) if a and b else 0.0


def test_both_scores_are_found_again() -> None:
    """One by one, without our functions: a passage goes on from its first 12 tokens, an answer ends at a stop."""
    splits, models = tiny_splits(), {"target": knows(), "unlearned": knows_little()}
    findings = MuseMetrics(prompt_tokens=12, verbatim_tokens=16, knowledge_tokens=8)(evaluation_of(models, splits))
    for subject, model in models.items():
        tokenizer = model.tokenizer
        for split, passage, questions in (("forget", 10, [0, 1, 2, 3]), ("retain", 11, [4, 5, 6, 7, 8, 9])):
            data = splits[split].dataset
            text = data.items[passage].answer
            tokens = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
            said = [token for token in alone(model, tokens[:12], 16) if token >= 0]
            expected = f1(tokenizer.decode(tokens[12:28]), tokenizer.decode(said))
            assert value(findings.records, "verbatim_memorization", subject=subject, split=split) == pytest.approx(
                expected
            )
            scores = []
            for item in questions:
                prompt = f"Question: {data.items[item].question}\nAnswer:"
                tokens = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
                said = [token for token in alone(model, tokens, 8) if token >= 0]
                scores.append(f1(data.items[item].answer, tokenizer.decode(said)))
            found = value(findings.records, "knowledge_memorization", subject=subject, split=split)
            assert found == pytest.approx(sum(scores) / len(scores))
    reference_cache = [value(findings.records, m, subject="target", split="forget") for m in
                  ("verbatim_memorization", "knowledge_memorization")]  # fmt: skip
    assert min(reference_cache) > 0.5
    assert value(findings.records, "verbatim_memorization", subject="unlearned", split="forget") < reference_cache[0]
    assert {r.unit for r in findings.records} == {"share"}


def test_passages_and_questions_that_the_data_give() -> None:
    """As MUSE has them: beginnings go on without a template; questions stand behind examples, in MUSE's wording."""
    base = tiny_dataset()
    whole = base.items[10].answer
    cut = whole.index("Its")
    asked = base.items[0]
    items = [
        *base.items,
        TextItem(whole[:cut], whole[cut:], "", frozenset({"verbmem", "evaluation"})),
        TextItem(asked.question, asked.answer, "", frozenset({"knowmem_forget", "evaluation"})),
    ]
    data = TextDataset(items, torch.tensor([*base.is_test.tolist(), True, True])).encoded_by(base.encoder)
    data.in_context = {"knowmem_forget": [("What is 1?", "One"), ("What is 2?", "Two")]}
    splits = {name: Split(name, data, split.ids) for name, split in tiny_splits().items()}
    model, evaluator = knows(), MuseMetrics(verbatim_tokens=16, knowledge_tokens=8)
    evaluation = evaluation_of({"target": model}, splits)
    (verbatim,), (knowledge,) = evaluator.verbatim(evaluation, model), evaluator.knowledge(evaluation, model)
    start, tokenizer = [model.tokenizer.bos_token_id], model.tokenizer
    assert verbatim.tokens == [start + tokenizer.encode(whole[:cut], add_special_tokens=False)]
    text = "Question: What is 1?\nAnswer: One\n\nQuestion: What is 2?\nAnswer: Two\n\n"
    text += f"Question: {asked.question}\nAnswer: "
    assert knowledge.tokens == [start + tokenizer.encode(text, add_special_tokens=False)]
    assert knowledge.truths == [asked.answer]
    truth = tokenizer.decode(tokenizer.encode(whole[cut:], add_special_tokens=False)[:16]).strip()
    assert verbatim.truths == [truth] and truth != whole[cut:]
    records = evaluator(evaluation).records
    assert {(r.metric, r.split, r.n) for r in records} == {
        ("verbatim_memorization", "forget", 1),
        ("knowledge_memorization", "forget", 1),
    }


def test_short_passages_and_missing_kinds_are_left_out() -> None:
    """A passage must go on behind the tokens that are given; without passages or questions there is no score."""
    splits, model = tiny_splits(), knows()
    found = MuseMetrics(prompt_tokens=90, knowledge_tokens=4)(evaluation_of({"target": model}, splits))
    assert {r.metric for r in found.records} == {"knowledge_memorization", "utility"}
    assert found.notes == [
        "muse: the data have no passages of more than 90 tokens, so there is no verbatim_memorization."
    ]
    only = {
        name: Split(name, splits[name].dataset, torch.tensor([item])) for name, item in (("forget", 10), ("retain", 11))
    }
    found = MuseMetrics(prompt_tokens=12, verbatim_tokens=4)(evaluation_of({"target": model}, only))
    assert {r.metric for r in found.records} == {"verbatim_memorization"}
    assert found.notes == ["muse: the data have no questions, so there is no knowledge_memorization."]
    with pytest.raises(ValueError, match="prompt_tokens is 0"):
        MuseMetrics(prompt_tokens=0)
