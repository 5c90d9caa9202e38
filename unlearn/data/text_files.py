"""Your own texts to forget and to keep, as JSON lines."""

from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any

import torch
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import Range, at_least
from unlearn.data.base import Source
from unlearn.data.chunking import PackedDataset
from unlearn.data.json_lines import read_rows, text_of, texts_of
from unlearn.data.text import TextItem

FILES = ("forget", "retain", "holdout")
KEYS = {
    "question",
    "answer",
    "text",
    "label",
    "cluster",
    "paraphrased_question",
    "paraphrased_answer",
    "perturbed_answer",
    "alternate",
}
"""Allowed keys of a line."""


@dataclass
class TextFiles(Source):
    """``forget.jsonl`` and ``retain.jsonl`` of a folder, and ``holdout.jsonl`` if it exists.

    Each line is ``{"question": ..., "answer": ...}`` or ``{"text": ...}``, optionally with a ``label``, a ``cluster``
    (what it shares with others that vary together, such as an author; by default its label), and for questions
    ``paraphrased_question``, ``paraphrased_answer``, ``perturbed_answer`` (a list of wrong answers) and ``alternate``
    (another plausible answer); metrics that need a missing form are left out. Attributes are the names of the files;
    by default ``forget`` is forgotten. The holdout holds texts like the forget texts that no model was trained on;
    membership inference needs it.

    Args:
        path: the folder.
        chunk_tokens: join texts and cut them into chunks of this many tokens; null keeps each text as an item, and
            cuts only those longer than ``model.max_length``.
    """

    path: str | None = None
    chunk_tokens: Annotated[int, Range(at_least, 16)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forget = self.forget.or_label("forget")

    @override
    def load(self) -> PackedDataset:
        if self.path is None:
            raise RecipeError(
                "data=text_files needs a folder with forget.jsonl and retain.jsonl. Type data.path=FOLDER"
            )
        folder = Path(expanduser(self.path))
        if not folder.is_dir():
            raise RecipeError(f"data.path: there is no folder {self.path!r}.")
        seen: dict[tuple[str, str], tuple[str, str]] = {}
        items: list[TextItem] = []
        is_test: list[bool] = []
        for name in FILES:
            file = folder / f"{name}.jsonl"
            if not file.is_file() and name == "holdout":
                continue
            if not file.is_file():
                raise RecipeError(f"data.path: {folder} lacks {file.name}. It needs forget.jsonl and retain.jsonl.")
            for place, row in read_rows(file):
                item = read_item(place, row, name)
                _refuse_twice(seen, name, place, item)
                items.append(item)
                is_test.append(name == "holdout")
        return PackedDataset(items, torch.tensor(is_test), FILES, self.chunk_tokens)


def read_item(place: str, row: dict[str, Any], *attributes: str) -> TextItem:
    """Return the item of one line. Raises RecipeError with the line's place if it is wrong."""
    unknown = sorted(set(row) - KEYS)
    if unknown:
        raise RecipeError(f'{place}: unknown key "{unknown[0]}". Allowed: {", ".join(sorted(KEYS))}.')
    label, cluster = (text_of(place, row, key) if key in row else "" for key in ("label", "cluster"))
    if "text" in row:
        extra = sorted(set(row) - {"text", "label", "cluster"})
        if extra:
            raise RecipeError(f'{place}: a line with "text" has no "{extra[0]}"; ask a question, or leave it out.')
        return TextItem("", text_of(place, row, "text"), label, frozenset(attributes), cluster=cluster)
    question, answer = text_of(place, row, "question"), text_of(place, row, "answer")
    return TextItem(question, answer, label, frozenset(attributes), forms_of(place, row), cluster=cluster)


def forms_of(place: str, row: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the forms that a line holds, by name."""
    question, answer = row["question"], row["answer"]
    forms = {}
    if "paraphrased_question" in row:
        forms["paraphrased_question"] = (text_of(place, row, "paraphrased_question"), answer)
    for name in ("paraphrased_answer", "alternate"):
        if name in row:
            forms[name] = (question, text_of(place, row, name))
    for index, wrong in enumerate(texts_of(place, row, "perturbed_answer")):
        if wrong in (answer, row.get("paraphrased_answer")):
            raise RecipeError(f'{place}: "perturbed_answer" holds the right answer, {wrong!r}.')
        forms[f"perturbed_{index}"] = (question, wrong)
    return forms


def _refuse_twice(seen: dict[tuple[str, str], tuple[str, str]], name: str, place: str, item: TextItem) -> None:
    """Raise RecipeError for an item that another file holds too; within one file it may occur twice."""
    before, where = seen.setdefault((item.question, item.answer), (name, place))
    if before != name:
        raise RecipeError(
            f"{place} and {where} hold the same item; it cannot be in both {before}.jsonl and {name}.jsonl. Delete one."
        )
