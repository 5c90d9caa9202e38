"""The TOFU suite: on two letters by hand, and every figure computed again without our functions."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from nltk.stem.porter import PorterStemmer

from tests.toys import FILES
from tests.toys.language import CAPITALS, encoder, tiny
from tests.toys.scripted import evaluation_of, value
from tests.toys.text_models import Bigram, letters, trained
from tests.toys.trained_language import fit
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.splits import make_splits
from unlearn.data.text import TextDataset, TextItem
from unlearn.data.tofu import Tofu as TofuFiles
from unlearn.evaluators.base import Evaluation, EvaluationResult
from unlearn.evaluators.text.muse import MuseMetrics
from unlearn.evaluators.text.tofu import TofuMetrics, kolmogorov_smirnov
from unlearn.models.language.config import Language, SmallLlama

SHAPED = str(FILES / "tofu_shaped")
NEEDS_TOFU = pytest.mark.skipif("UNLEARN_TOFU" not in os.environ, reason="needs UNLEARN_TOFU, the benchmark's folder")
WRONG = {"perturbed_0": ("a", "a"), "perturbed_1": ("a", "ab")}
HIGH = Bigram(0.9)
"""p(b) = .9 whatever went before: P(b) = .9, P(a) = .1, P(ab) = sqrt(.9 x .1) = .3."""


def asked(answer: str = "b", attributes: Sequence[str] = (), **forms: tuple[str, str]) -> TextItem:
    return TextItem("a", answer, "", frozenset(attributes), forms)


def test_probability_and_truth_ratio_by_hand() -> None:
    """Geometric r = sqrt(.1 x .3) / .9 = .1925, arithmetic .2 / .9; forget counts min(r, 1 / r), retain 1 - r.

    Among the options, the answer of a real author has .9 / (.9 + .1 + .3). With the paraphrase a, P(right) = .1 and
    r = sqrt(.03) / .1 = 1.73, whose inverse counts on forget, and 0 on retain.
    """
    again = {"paraphrased_answer": ("a", "a")}
    splits = letters(
        forget=[asked(**WRONG), asked(**WRONG, **again)],
        retain=[asked(**WRONG), asked(**WRONG, **again)],
        test=[asked("b", ["real_authors"], **WRONG)],
    )
    r = math.sqrt(0.03) / 0.9
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    assert value(records, "truth_ratio", split="forget") == pytest.approx((r + 0.1 / math.sqrt(0.03)) / 2)
    assert value(records, "truth_ratio", split="retain") == pytest.approx((1 - r) / 2)
    assert value(records, "truth_ratio", split="test") == pytest.approx(1 - r)
    assert value(records, "probability", split="forget") == pytest.approx(0.9)
    assert value(records, "probability", split="test", set="real_authors") == pytest.approx(0.9 / 1.3)
    records = TofuMetrics(new_tokens=1, arithmetic=True)(evaluation_of({"target": HIGH}, splits)).records
    assert value(records, "truth_ratio", split="test") == pytest.approx(1 - 0.2 / 0.9)


def test_model_utility_by_hand() -> None:
    """Four answers of b, one greedy b said each: ROUGE 1 on retain. 3 / (1 / .9 + 1 / 1 + 1 / (1 - r)); of authors
    .9 / 1.3 and 1 and 1 - r. Forget and holdout do not count."""
    r = math.sqrt(0.03) / 0.9
    retain = [asked(**WRONG) for _ in range(3)]
    splits = letters(forget=[asked("a", **WRONG)], retain=retain, holdout=[asked("a", **WRONG)])
    (record,) = [
        found
        for found in TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
        if found.metric == "model_utility"
    ]
    assert record.value == pytest.approx(3 / (1 / 0.9 + 1 + 1 / (1 - r)))
    assert record.about == {"parts": "3 of 9"}
    assert (record.n, record.direction, record.split) == (3, "higher", "")
    splits = letters(forget=[asked("a", **WRONG)], retain=retain, test=[asked("b", ["world_facts"], **WRONG)])
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    parts = [0.9, 1, 1 - r, 0.9 / 1.3, 1, 1 - r]
    assert value(records, "model_utility", parts="6 of 9") == pytest.approx(6 / sum(1 / part for part in parts))


def test_a_part_that_is_0_makes_utility_0() -> None:
    splits = letters(forget=[asked()], retain=[asked("a"), asked("a")])
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    assert value(records, "model_utility", parts="2 of 9") == 0
    assert value(records, "rouge_l_recall", split="retain") == 0


def test_the_interval_of_model_utility_covers_resamples() -> None:
    """It is linearised: near the spread of the figure over bootstrap resamples of the items, computed here."""
    retain = [asked("b" * (1 + n % 3) + "a" * (n % 2), **WRONG) for n in range(60)]
    splits = letters(forget=[asked()], retain=retain)
    findings = TofuMetrics(new_tokens=2, items=None)(evaluation_of({"target": Bigram(0.8)}, splits))
    (record,) = [r for r in findings.records if r.metric == "model_utility"]
    columns = torch.tensor(
        [
            [row["value"] for row in findings.items if row["metric"] == metric and row["split"] == "retain"]
            for metric in ("probability", "rouge_l_recall", "truth_ratio")
        ]
    )
    drawn = torch.randint(60, (4000, 60), generator=torch.Generator().manual_seed(0))
    figures = 3 / (1 / columns[:, drawn].mean(dim=2)).sum(dim=0)
    assert record.ci95 is not None
    assert (record.ci95[1] - record.ci95[0]) / 2 == pytest.approx(1.96 * figures.std().item(), rel=0.1)


def test_forget_quality_of_equal_and_of_distant_models() -> None:
    """Equal: p = 1, D = 0. Apart: D = 1, and p = 2 / C(8, 4) = 2 / 70, two of all orders of 4 + 4 values."""
    forget = [asked("b" * n, **WRONG) for n in (1, 2, 3, 4)]
    splits = letters(forget=forget, retain=[asked(**WRONG)])
    models = {"target": Bigram(0.2), "unlearned": HIGH, "retrained": Bigram(0.9)}
    records = TofuMetrics(new_tokens=1)(evaluation_of(models, splits)).records
    found = {(r.subject, r.about.get("score")): r for r in records if r.metric == "forget_quality"}
    assert found.keys() == {(s, score) for s in ("target", "unlearned") for score in (None, "statistic")}
    assert [found["unlearned", None].value, found["unlearned", "statistic"].value] == [1, 0]
    assert found["target", None].value == pytest.approx(2 / 70)
    assert found["target", "statistic"].value == 1
    assert [found["target", None].direction, found["target", "statistic"].direction] == ["higher", "lower"]
    assert all(math.isnan(x) for x in kolmogorov_smirnov(torch.tensor([math.nan]), torch.tensor([1.0])))


def test_missing_forms_switch_off_what_needs_them() -> None:
    """No wrong answers: no truth ratio, no forget quality, no probability among options; and no retrained model."""
    splits = letters(forget=[asked()], retain=[asked()], test=[asked("b", ["real_authors"])])
    models = {"target": HIGH, "retrained": HIGH}
    found = TofuMetrics(new_tokens=1)(evaluation_of(models, splits))
    bare = "forget and retain and real_authors have no perturbed answers"
    assert found.notes == [f"tofu: the questions of {bare}, so there is no truth_ratio and no forget_quality."]
    assert {(r.metric, r.split) for r in found.records} == {
        ("probability", "forget"),
        ("rouge_l_recall", "forget"),
        ("probability", "retain"),
        ("rouge_l_recall", "retain"),
        ("rouge_l_recall", "test"),
        ("model_utility", ""),
    }
    whole = letters(forget=[asked(**WRONG), asked("a")], retain=[asked(**WRONG)])
    found = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, whole))
    records = found.records
    assert found.notes == [] and "forget_quality" not in {r.metric for r in records}
    assert {r.n for r in records if r.split == "forget"} == {1}  # where some have wrong answers, it is those
    passages = letters(forget=[TextItem("", "abab")], retain=[TextItem("", "ab")])
    found = TofuMetrics()(evaluation_of({"target": HIGH}, passages))
    assert found.records == [] and found.notes[0].startswith("tofu: forget and retain ask nothing")


def test_answers_that_are_cut_away_are_left_out() -> None:
    """A question as long as all that a model reads leaves no answer; a broken model has no figures, not 0."""
    splits = letters(forget=[asked(**WRONG), asked(**WRONG)], retain=[asked(**WRONG), asked("a", **WRONG)])
    data = splits["forget"].dataset
    data.tokens(1)  # type: ignore[attr-defined]
    data._encoded[1, "perturbed_1"] = ([0], [])  # type: ignore[attr-defined]
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": HIGH}, splits)).records
    assert [r.n for r in records] == [1, 1, 1, 2, 2, 2, 2]
    assert all(math.isfinite(r.value) for r in records)
    records = TofuMetrics(new_tokens=1)(evaluation_of({"target": Bigram(math.nan)}, splits)).records
    assert math.isnan(value(records, "probability", split="retain"))
    assert math.isnan(value(records, "model_utility", parts="3 of 9"))


def test_one_generation_pass_for_all() -> None:
    splits = letters(forget=[asked(**WRONG), asked("a")], retain=[asked("b")])
    evaluation = evaluation_of({"target": Bigram(0.9)}, splits)
    model = evaluation.models["target"]
    TofuMetrics(new_tokens=3)(evaluation)
    assert model.prompts == 2
    TofuMetrics(new_tokens=2)(evaluation)
    assert model.prompts == 2
    TofuMetrics(new_tokens=4)(evaluation)
    assert model.prompts == 4


# The whole suite again, without our functions: transformers' own forward pass and generate, item by item.


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
