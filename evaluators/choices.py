"""Multiple-choice questions: made of the data's own wrong answers, or read from a file, as tasks of the harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearn.data.text import TextDataset
from unlearn.errors import RecipeError

Question = dict[str, Any]
"""``question``, ``choices`` (texts), ``answer`` (index of the right one)."""


def perturbed_choices(data: TextDataset, ids: Tensor) -> list[Question]:
    """Return items (n,) as multiple choice: the right answer among the perturbed ones, at a place that its id gives.

    The right answer is the paraphrased one where there is one: perturbed answers are worded like it, so that neither
    length nor wording gives the right one away.
    """
    found = []
    for item in ids.tolist():
        own = data.items[item].forms
        question, right = data.words(item, "paraphrased_answer" if "paraphrased_answer" in own else "")
        forms = sorted(form for form in own if form.startswith("perturbed_"))
        choices = [data.words(item, form)[1] for form in forms]
        place = item % (len(choices) + 1)
        found.append({"question": question, "choices": [*choices[:place], right, *choices[place:]], "answer": place})
    return found


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a JSONL file. Raises RecipeError, naming the line, where one is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"evaluate.lm_eval.questions={path} cannot be read ({error}).") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise RecipeError(f"{path}, line {number}: no JSON ({error.msg}, column {error.colno}).") from error
            if not _is_question(entry):
                raise RecipeError(
                    f"{path}, line {number}: a question has the keys question (text), choices (two texts or more) and "
                    "answer (index of the right one, from 0)."
                )
            found.append({key: entry[key] for key in ("question", "choices", "answer")})
    if not found:
        raise RecipeError(f"{path} holds no question.")
    return found


def _is_question(entry: Any) -> bool:
    if not (isinstance(entry, dict) and {"question", "choices", "answer"} <= entry.keys()):
        return False
    question, choices, answer = entry["question"], entry["choices"], entry["answer"]
    return (
        isinstance(question, str)
        and bool(question)
        and isinstance(choices, list)
        and len(choices) > 1
        and all(isinstance(choice, str) for choice in choices)
        and type(answer) is int
        and 0 <= answer < len(choices)
    )


def multiple_choice(name: str, questions: Sequence[Question], encoder: Any) -> dict[str, Any]:
    """Return the harness's configuration of a multiple-choice task in a model's own prompts, which needs no file."""

    def documents(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        prompts = [encoder.tokenizer.decode(encoder.encode(each["question"], None)[0]) for each in questions]
        return {"test": Dataset.from_list([{**q, "prompt": p} for q, p in zip(questions, prompts, strict=True)])}

    return {
        "task": name,
        "custom_dataset": documents,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
    }
