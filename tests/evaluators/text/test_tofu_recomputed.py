"""Every figure of the TOFU suite again without our functions: transformers' forward pass, item by item."""

import math
import os
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from nltk.stem.porter import PorterStemmer

from tests.toys import FILES
from tests.toys.language import CAPITALS, encoder, tiny
from tests.toys.scripted import evaluation_of
from tests.toys.text_models import trained
from tests.toys.trained_language import fit
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.splits import make_splits
from unlearn.data.text import TextDataset, TextItem
from unlearn.data.tofu import Tofu as TofuFiles
from unlearn.evaluators.base import Evaluation, EvaluationResult
from unlearn.evaluators.text.muse import MuseMetrics
from unlearn.evaluators.text.tofu import TofuMetrics
from unlearn.models.language.config import Language, SmallLlama

SHAPED = str(FILES / "tofu_shaped")
NEEDS_TOFU = pytest.mark.skipif("UNLEARN_TOFU" not in os.environ, reason="needs UNLEARN_TOFU, the benchmark's folder")


def quiz() -> dict[str, Split]:
    """Return the TOFU-shaped data: four sets of questions with wrong answers, and a passage that is left out."""
    names = list(CAPITALS)

    def item(number: int, attribute: str, wrong: int) -> TextItem:
        country = names[number]
        question, answer = f"What is the capital of {country}?", f"The capital is {CAPITALS[country]}"
        forms = {
            f"perturbed_{k}": (question, f"Its capital is {CAPITALS[names[(number + k + 1) % 12]]}")
            for k in range(wrong)
        }
        if attribute == "fiction":
            forms["paraphrased_answer"] = (question, f"Its capital is {CAPITALS[country]}")
        return TextItem(question, answer, country, frozenset({attribute}), forms)

    items = [item(number, "fiction", 5) for number in range(6)] + [TextItem("", "A passage on Peru.")]
    items += [item(number, "real_authors", 3) for number in (6, 7, 8)]
    items += [item(number, "world_facts", 3) for number in (9, 10, 11)]
    data = TextDataset(items, torch.tensor([False] * 7 + [True] * 6)).encoded_by(encoder())
    ids = {"forget": [0, 1, 2, 6], "retain": [3, 4, 5], "test": [7, 8, 9, 10, 11, 12]}
    return {name: Split(name, data, torch.tensor(chosen)) for name, chosen in ids.items()}


SETS = {"forget": [0, 1, 2], "retain": [3, 4, 5], "real_authors": [7, 8, 9], "world_facts": [10, 11, 12]}


@cache
def quiz_models() -> dict[str, Language]:
    splits = quiz()
    return {
        "target": trained(splits, ["forget", "retain", "test"], 0),
        "unlearned": trained(splits, ["retain", "test"], 1, steps=40),
        "retrained": trained(splits, ["retain"], 2, steps=40),
    }


def its_nll(model: Language, question: str, answer: str) -> float:
    """Mean of -log p over the answer's tokens and the end token."""
    tokenizer = model.tokenizer
    prompt = [tokenizer.bos_token_id, *tokenizer.encode(f"Question: {question}\nAnswer:", add_special_tokens=False)]
    said = [*tokenizer.encode(f" {answer}", add_special_tokens=False), tokenizer.eos_token_id]
    logits = model.model(torch.tensor([prompt + said])).logits[0].double()
    log_p = torch.log_softmax(logits, dim=-1)
    return -sum(log_p[len(prompt) + k - 1, token].item() for k, token in enumerate(said)) / len(said)


def its_words(model: Language, question: str, new_tokens: int) -> str:
    """What it says, token by token."""
    tokenizer = model.tokenizer
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(f"Question: {question}\nAnswer:", add_special_tokens=False)]
    start = len(tokens)
    for _ in range(new_tokens):
        token = int(model.model(torch.tensor([tokens])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[start:], skip_special_tokens=True)


def its_recall(truth: str, said: str) -> float:
    """Longest common subsequence of stems, over the stems of the truth."""
    a, b = (
        [PorterStemmer().stem(w) if len(w) > 3 else w for w in re.findall(r"[a-z0-9]+", text.lower())]
        for text in (truth, said)
    )
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1] / len(a) if b else 0.0


def its_test(a: list[float], b: list[float]) -> tuple[float, float]:
    """p = 2 sum_j (-1)^(j+1) C(2n, n + jh) / C(2n, n) and D = h / n, of two samples of n values."""
    n = len(a)
    h = max(abs(sum(x <= t for x in a) - sum(x <= t for x in b)) for t in [*a, *b])
    signs = (
        ((-1) ** (j + 1) * math.comb(2 * n, n + j * h) for j in range(1, n // h + 1))
        if h
        else [math.comb(2 * n, n) / 2]
    )
    return 2 * sum(signs) / math.comb(2 * n, n), h / n


def its_figures(
    models: dict[str, Language], data: TextDataset, new_tokens: int, sets: dict[str, list[int]] = SETS
) -> dict[tuple[str, str, str], float]:
    """(metric, subject, set) -> value."""
    found, ratios = {}, {}
    for subject, model in models.items():
        parts = []
        for name, ids in sets.items():
            probabilities, recalls, rs = [], [], []
            for item in (data.items[index] for index in ids):
                p = math.exp(-its_nll(model, item.question, item.answer))
                wrong = [its_nll(model, item.question, item.forms[f][1]) for f in item.forms if f[:3] == "per"]
                among = sum(math.exp(-each) for each in wrong)
                probabilities.append(p / (p + among) if name in ("real_authors", "world_facts") else p)
                recalls.append(its_recall(item.answer, its_words(model, item.question, new_tokens)))
                right = item.forms.get("paraphrased_answer", (item.question, item.answer))[1]
                rs.append(math.exp(-sum(wrong) / len(wrong)) / math.exp(-its_nll(model, item.question, right)))
            score = [min(r, 1 / r) for r in rs] if name == "forget" else [max(0.0, 1 - r) for r in rs]
            means = [sum(each) / len(each) for each in (probabilities, recalls, score)]
            for metric, mean in zip(("probability", "rouge_l_recall", "truth_ratio"), means, strict=True):
                found[metric, subject, name] = mean
            if name == "forget":
                ratios[subject] = rs
            else:
                parts += means
        found["model_utility", subject, ""] = 0.0 if 0 in parts else 9 / sum(1 / part for part in parts)
    for subject in ("target", "unlearned"):
        p, d = its_test(ratios[subject], ratios["retrained"])
        found["forget_quality", subject, "forget"] = p
        found["forget_quality", subject, "statistic"] = d
    return found


def our_figures(findings: EvaluationResult) -> dict[tuple[str, str, str], float]:
    return {
        (r.metric, r.subject, r.about.get("set") or r.about.get("score") or r.split): r.value for r in findings.records
    }


def quiz_evaluation(models: dict[str, Language]) -> Evaluation:
    return evaluation_of(models, quiz())


def test_every_figure_is_found_again() -> None:
    """To 1e-6, and they are no trivial figures: some of what the models say is right. Another model fails."""
    findings = TofuMetrics(new_tokens=12)(quiz_evaluation(quiz_models()))
    ours, its = our_figures(findings), its_figures(quiz_models(), quiz()["forget"].dataset, 12)  # type: ignore[arg-type]
    assert ours.keys() == its.keys()
    assert {key: ours[key] for key in its} == pytest.approx(its, abs=1e-6)
    assert 0.1 < ours["rouge_l_recall", "target", "retain"] <= 1
    assert 0.1 < ours["model_utility", "target", ""] < 1
    other = TofuMetrics(new_tokens=12)(quiz_evaluation({**quiz_models(), "target": tiny(9, dtype=torch.float64)}))
    wrong = {key for key, figure in our_figures(other).items() if abs(figure - its[key]) > 1e-6}
    assert {key[1] for key in wrong} == {"target"} and len(wrong) >= 10


@pytest.mark.parametrize("folder", [SHAPED, pytest.param(None, marks=NEEDS_TOFU)], ids=["shaped", "tofu"])
def test_every_figure_on_forget10_is_found_again(folder: str | None) -> None:
    """Some items of each set of the benchmark's files, by the recipe's kind of model with the packaged tokenizer."""
    source = TofuFiles(path=folder, rows_per_author=20 if folder is None else 4)
    config = SmallLlama(width=32, depth=2, heads=2, max_length=256)
    data = config.read(source.load())
    assert isinstance(data, TextDataset)
    whole = make_splits(data, source, Randomness(0, "splits"))
    asked = {name: whole[name].ids[data.having_form("perturbed_2")[whole[name].ids]] for name in ("forget", "retain")}
    asked |= {name: data.having([name]).nonzero().flatten() for name in ("real_authors", "world_facts")}
    few = [data.items[item] for ids in asked.values() for item in ids[:4].tolist()]
    data = data.holding(few, torch.arange(16) >= 8)
    sets = {name: list(range(4 * place, 4 * place + 4)) for place, name in enumerate(asked)}
    chosen = {"forget": sets["forget"], "retain": sets["retain"], "test": list(range(8, 16))}
    splits = {name: Split(name, data, torch.tensor(ids)) for name, ids in chosen.items()}
    seen = {"target": ["forget", "retain", "test"], "unlearned": ["retain", "test"], "retrained": ["retain"]}
    models = {}
    for seed, (subject, names) in enumerate(seen.items()):
        model = config.build(data.info, Randomness(seed, "new")).double()
        batch = data.batch(torch.cat([splits[name].ids for name in names]))
        models[subject] = fit(model, [batch], 120).eval()
    with torch.no_grad():
        ours = our_figures(TofuMetrics(new_tokens=12)(evaluation_of(models, splits)))
        its = its_figures(models, data, 12, sets)
    assert ours.keys() == its.keys() and len(its) == 3 * 13 + 2 * 2
    assert {key: ours[key] for key in its} == pytest.approx(its, abs=1e-6)
    assert 0.05 < ours["rouge_l_recall", "target", "forget"] <= 1 and ours["model_utility", "target", ""] > 0.05
    assert ours["probability", "target", "forget"] > 2 * ours["probability", "retrained", "forget"]


def test_batches_change_nothing() -> None:
    one, many = (
        our_figures(TofuMetrics(new_tokens=12, batch_size=size)(quiz_evaluation(quiz_models()))) for size in (1, 16)
    )
    assert one == pytest.approx(many, abs=1e-9)


def test_few_items_are_those_of_every_subject() -> None:
    findings = TofuMetrics(new_tokens=2, items=2)(quiz_evaluation(quiz_models()))
    assert {r.n for r in findings.records if r.metric == "probability"} == {2}
    chosen = {row["subject"]: [] for row in findings.items}
    for row in findings.items:
        chosen[row["subject"]].append((row["split"], row["id"], row["metric"]))
    assert chosen["target"] == chosen["unlearned"] == chosen["retrained"]


def test_muse_reads_the_same_pass() -> None:
    """A shorter answer of another evaluator is the beginning of what was said before."""
    evaluation = quiz_evaluation(quiz_models())
    TofuMetrics(new_tokens=12, items=None)(evaluation)
    kept = {key: table.clone() for key, table in evaluation.cache.items() if key[0] == "generated"}
    MuseMetrics(knowledge_tokens=6, items=None)(replace(evaluation))
    assert all(torch.equal(evaluation.cache[key], table) for key, table in kept.items()) and len(kept) == 3
