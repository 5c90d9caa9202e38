"""lm-evaluation-harness on models in memory, with no network and no trace in the random state."""

import io
import json
import logging
import random
import socket
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toys.language import tiny, tiny_splits
from tests.toys.scripted import evaluation_of, value
from tests.toys.text_models import letters, trained
from unlearn.core.errors import RecipeError
from unlearn.core.records import Record
from unlearn.data.text import TextItem
from unlearn.evaluators.text.lm_eval import LmEval, _quiet, kept_random_state
from unlearn.evaluators.text.multiple_choice import multiple_choice, perturbed_choices, read_questions
from unlearn.models.language.config import Language
from unlearn.models.language.tokenization import TextEncoder


@cache
def models() -> dict[str, Language]:
    return {"target": trained(tiny_splits(), ["forget", "retain"]).float(), "unlearned": tiny(3, width=32)}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any socket is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def choice_scores(model: Language, question: str, choices: list[str]) -> list[float]:
    """log p of each choice behind the prompt, without the end token; computed here."""
    tokenizer = model.tokenizer
    prompt = [tokenizer.bos_token_id, *tokenizer.encode(f"Question: {question}\nAnswer:", add_special_tokens=False)]
    found = []
    for choice in choices:
        said = tokenizer.encode(f" {choice}", add_special_tokens=False)
        log_p = torch.log_softmax(model.model(torch.tensor([prompt + said])).logits[0].double(), dim=-1)
        found.append(sum(log_p[len(prompt) + k - 1, token].item() for k, token in enumerate(said)))
    return found


def accuracies(model: Language, questions: list[dict[str, Any]]) -> tuple[float, float]:
    """Accuracy, and accuracy by log p a byte; computed here."""
    right = [[], []]
    for each in questions:
        scores = choice_scores(model, each["question"], each["choices"])
        sizes = [len(choice.encode()) for choice in each["choices"]]
        by_byte = [score / size for score, size in zip(scores, sizes, strict=True)]
        for kind, values in zip(right, (scores, by_byte), strict=True):
            kind.append(values.index(max(values)) == each["answer"])
    return sum(right[0]) / len(right[0]), sum(right[1]) / len(right[1])


@pytest.mark.usefixtures("no_network")
def test_perturbed_choices_without_a_network() -> None:
    """The figures are those of likelihoods computed here; what was learnt by heart is above chance, 1/6."""
    with pytest.raises(OSError, match="a socket was opened"):
        socket.create_connection(("localhost", 1))
    splits = tiny_splits()
    data = splits["forget"].dataset
    records = LmEval()(evaluation_of(models(), splits)).records
    for subject, model in models().items():
        for split, ids in (("forget", [0, 1, 2, 3]), ("retain", [4, 5, 6, 7, 8, 9]), ("holdout", [12, 13])):
            questions = perturbed_choices(data, torch.tensor(ids))  # type: ignore[arg-type]
            acc, acc_norm = accuracies(model, questions)
            assert value(records, "lm_eval_acc", subject=subject, split=split) == pytest.approx(acc)
            assert value(records, "lm_eval_acc_norm", subject=subject, split=split) == pytest.approx(acc_norm)
    assert len(records) == 12
    assert {r.about["task"] for r in records} == {"perturbed_choices"}
    assert {(r.split, r.direction, r.n) for r in records} == {
        ("forget", "retrained", 4),
        ("retain", "higher", 6),
        ("holdout", "retrained", 2),
    }
    assert all(r.ci95 is not None and r.ci95[0] <= r.value <= r.ci95[1] for r in records)


def test_the_right_choice_stands_at_every_place_and_is_worded_like_the_others() -> None:
    data = tiny_splits()["forget"].dataset
    questions = perturbed_choices(data, torch.arange(10))  # type: ignore[arg-type]
    assert [each["answer"] for each in questions] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    for item, each in enumerate(questions):
        assert each["choices"][each["answer"]] == f"It is {data.items[item].answer}"  # type: ignore[attr-defined]
        assert len(set(each["choices"])) == 6 and all(choice.startswith("It is ") for choice in each["choices"])


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


GOOD = {"question": "What is the capital of Peru?", "choices": ["Suva", "Lima", "Muscat"], "answer": 1}


@pytest.mark.usefixtures("no_network")
def test_questions_of_a_file(tmp_path: Path) -> None:
    other = {"question": "What is the capital of Fiji?", "choices": ["Suva", "Lima"], "answer": 0}
    file = write(tmp_path / "wmdp.jsonl", GOOD, other)
    records = LmEval(tasks=[], questions=str(file))(evaluation_of(models(), tiny_splits())).records
    for subject, model in models().items():
        acc, acc_norm = accuracies(model, [GOOD, other])
        assert value(records, "lm_eval_acc", subject=subject, task="questions") == acc
        assert value(records, "lm_eval_acc_norm", subject=subject, task="questions") == acc_norm
    assert {r.direction for r in records} == {"retrained"}
    first = LmEval(tasks=[], questions=str(file), limit=1)(evaluation_of(models(), tiny_splits())).records
    assert {r.n for r in first} == {1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"q\.jsonl:2: not JSON"),
        ({**GOOD, "answer": 3}, r'q\.jsonl:2: "answer" is 3; it must be the index of the right choice, 0 \.\.\. 2'),
        ({**GOOD, "answer": "1"}, r'q\.jsonl:2: "answer" is "1"'),
        ({**GOOD, "answer": True}, r'q\.jsonl:2: "answer" is true'),
        ({**GOOD, "choices": ["x"]}, r'q\.jsonl:2: "choices" has 1 texts; a choice needs two'),
        ({**GOOD, "choices": "xy"}, r'q\.jsonl:2: "choices" is "xy"; it must be a list of texts'),
        ({"choices": ["x", "y"], "answer": 0}, r'q\.jsonl:2: there is no "question"'),
    ],
)
def test_a_wrong_line_is_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        read_questions(write(tmp_path / "q.jsonl", GOOD, row))
    assert read_questions(write(tmp_path / "q.jsonl", GOOD)) == [GOOD]


TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: capitals.jsonl
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("start", ["", "~/"])
def test_a_task_of_ones_own(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the task, in a folder relative to here or to the home folder.

    Only this folder is searched, so that no list of 14,000 tasks is read.
    """
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "capitals.yaml").write_text(TASK)
    write(tmp_path / "capitals.jsonl", GOOD, {**GOOD, "question": "What is the capital of Fiji?", "answer": 0})
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path.parent)
    judge = LmEval(tasks=["capitals", "perturbed_choices"], include_path=f"{start}{tmp_path.name}")
    before = Path.cwd()
    records = judge(evaluation_of(models(), tiny_splits())).records
    assert Path.cwd() == before
    assert judge._manager.all_tasks == ["capitals"]
    own = [r for r in records if r.about == {"task": "capitals"}]
    assert {(r.metric, r.subject, r.split, r.direction, r.n) for r in own} == {
        ("lm_eval_acc", subject, "", "higher", 2) for subject in models()
    }
    assert len(records) == 2 + 12


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = evaluation_of(models(), tiny_splits())
    with pytest.raises(RecipeError, match=r"evaluate\.lm_eval\.include_path="):
        LmEval(include_path=str(tmp_path / "none"))(evaluation)
    (tmp_path / "capitals.yaml").write_text(TASK)
    with pytest.raises(RecipeError, match=r"evaluate\.lm_eval.*capitals"):
        LmEval(tasks=["capitals"], include_path=str(tmp_path))(evaluation)
    with pytest.raises(ValueError, match="tasks is empty"):
        LmEval(tasks=[])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RecipeError, match=r'pip install "unlearnkit\[language\]"'):
        LmEval()(evaluation)


def test_wrong_settings_are_found_before_the_work(tmp_path: Path) -> None:
    """Among the harness's 14,000 tasks only the nearest are named."""
    splits = tiny_splits()
    with pytest.raises(RecipeError, match=r"evaluate\.lm_eval\.questions.*none\.jsonl"):
        LmEval(tasks=[], questions=str(tmp_path / "none.jsonl")).check(splits)
    with pytest.raises(RecipeError, match=r"Did you mean: arc_easy,.*python -m lm_eval ls tasks") as error:
        LmEval(tasks=["arc_eesy"]).check(splits)
    assert len(str(error.value)) < 400


def test_splits_without_wrong_answers_are_named() -> None:
    plain = letters(forget=[TextItem("a", "b")], retain=[TextItem("b", "a")])
    (note,) = LmEval()(evaluation_of({"target": tiny(0)}, plain)).notes
    assert note.startswith("lm_eval: the questions of forget and retain have no perturbed answers")
    assert LmEval()(evaluation_of(models(), tiny_splits())).notes == []


TURN = (
    "{% for turn in messages %}{% if turn.role == 'user' %}<u>{{ turn.content }}</u>{% else %}<a>: {{ turn.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>:{% endif %}"
)


@pytest.mark.parametrize("template", ["chat", "Q: {question}\nA:", "Q: {question}\nA: "])
def test_choices_stand_behind_the_prompt_as_the_models_answers_do(template: str) -> None:
    """What the harness scores is what the encoder makes of question and choice, less the end token."""
    model = tiny(3, width=32)
    model.tokenizer.chat_template = TURN
    encoder = TextEncoder(model.tokenizer, template)
    task = multiple_choice("choices", [GOOD], encoder)
    prompt = task["custom_dataset"]()["test"][0]["prompt"]
    asked, answer = encoder.encode(GOOD["question"], GOOD["choices"][1])
    whole = encoder.tokenizer.decode([*asked, *answer[:-1]])
    assert prompt + task["target_delimiter"] + GOOD["choices"][1] == whole
    assert whole.endswith({"chat": "<a>: Lima"}.get(template, "A: Lima"))


def states() -> tuple[Any, ...]:
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2], torch.random.get_rng_state().tolist()


def test_the_random_states_are_left_as_they_are() -> None:
    before = states()
    LmEval()(evaluation_of(models(), tiny_splits()))
    assert states() == before
    with kept_random_state():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        assert all(now != then for now, then in zip(states(), before, strict=True) if isinstance(now, list))
    assert states() == before


def test_the_harness_is_quiet_outside_of_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """git, which the harness asks for the version of the working folder, would complain that there is none."""
    monkeypatch.chdir(tmp_path)
    LmEval(limit=1)(evaluation_of({"target": tiny(3)}, tiny_splits()))
    assert capfd.readouterr().err == ""


def test_other_voices_are_silent_for_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger("transformers").addHandler(handler)
    try:
        for quiet in (False, True, False):
            with _quiet() if quiet else nullcontext():
                logging.getLogger("transformers.generation").warning("A reminder, quiet is %s", quiet)
                subprocess.run(["git", "--git-dir=none", "log"], check=False)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert heard.getvalue() == "A reminder, quiet is False\n" * 2
    assert capfd.readouterr().err.count("fatal: not a git repository") == 2


def test_the_model_and_its_tokenizer_are_left_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny(3)
    tokens, weights = model.tokenizer.backend_tokenizer.to_str(), [p.clone() for p in model.parameters()]
    side = model.tokenizer.padding_side
    first: list[Record] = LmEval()(evaluation_of({"target": model}, tiny_splits())).records
    assert model.tokenizer.backend_tokenizer.to_str() == tokens and model.tokenizer.padding_side == side
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert LmEval(batch_size=1)(evaluation_of({"target": model}, tiny_splits())).records == first
    assert capfd.readouterr().err == ""
