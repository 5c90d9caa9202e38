"""Multiple-choice questions from the data's wrong answers or from a file, as tasks of the harness."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.data.json_lines import read_rows, text_of, texts_of
from unlearn.data.text import TextDataset

Question = dict[str, Any]
"""``question``, ``choices`` (texts), ``answer`` (index of the right one)."""


def perturbed_choices(data: TextDataset, ids: Tensor) -> list[Question]:
    """Return items (n,) as multiple choice: the right answer among the perturbed ones, at a position given by its id.

    The right answer is the paraphrased one where there is one: perturbed answers are worded like it, so that neither
    length nor wording reveals the right one.
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
    """Return the questions of a file of JSON lines. Raises RecipeError, naming the line, where one is wrong."""
    found = []
    for place, row in read_rows(path):
        question, choices, answer = text_of(place, row, "question"), texts_of(place, row, "choices"), row.get("answer")
        if len(choices) < 2:
            raise RecipeError(f'{place}: "choices" has {len(choices)} texts; a choice needs two or more.')
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise RecipeError(
                f'{place}: "answer" is {json.dumps(answer)}; it must be the index of the right choice, '
                f"0 ... {len(choices) - 1}."
            )
        found.append({"question": question, "choices": choices, "answer": answer})
    return found


def multiple_choice(name: str, questions: Sequence[Question], encoder: Any) -> dict[str, Any]:
    """Return the harness's configuration of a multiple-choice task in a model's own prompt format."""

    def documents(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        prompts = [encoder.tokenizer.decode(encoder.encode(each["question"], None)[0]) for each in questions]
        asked = [{**q, "prompt": p + encoder.space(p)} for q, p in zip(questions, prompts, strict=True)]
        return {"test": Dataset.from_list(asked)}

    return {
        "task": name,
        "custom_dataset": documents,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",  # the prompt already ends with the encoder's own
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
    }
