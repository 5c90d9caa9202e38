"""MUSE: news and books to forget, with texts and questions for its six criteria."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.files import read_text
from unlearn.core.validation import Range, at_least
from unlearn.data.base import Source
from unlearn.data.chunking import PackedDataset
from unlearn.data.hub_datasets import hub_rows
from unlearn.data.json_lines import plain_text, read_values, text_of
from unlearn.data.text import TextItem

Fold = Literal["raw", "scal_1", "scal_2", "scal_3", "scal_4", "sust_1", "sust_2", "sust_3", "sust_4"]

RAW = ("forget", "retain1", "retain2", "holdout")
"""The sets of long texts, which are cut into chunks."""

LAYOUT = (
    "It holds, as .json (a list of texts or objects), .jsonl or .txt: raw/forget, raw/retain1, raw/retain2, "
    "raw/holdout; and optionally verbmem/forget, knowmem/forget_qa, knowmem/forget_qa_icl, "
    "knowmem/retain_qa, knowmem/retain_qa_icl, privleak/forget, privleak/retain, privleak/holdout, "
    "scal/forget_1 ... forget_4, sust/forget_1 ... forget_4."
)


@dataclass
class Muse(Source):
    """MUSE from a folder, or from the hub (``muse-bench/MUSE-News``, ``muse-bench/MUSE-Books``).

    Attributes: ``forget`` and ``retain1``, the training items; ``retain2`` and ``holdout``, test items; and questions
    and texts for evaluation only: ``verbmem`` (the question is the beginning of a passage, the answer how it goes
    on), ``knowmem_forget``, ``knowmem_retain``, ``privleak_forget``, ``privleak_retain``, ``privleak_holdout``. The
    dataset's ``in_context`` holds the questions shown before those of ``knowmem_forget`` and ``knowmem_retain``. Only
    the forget set and ``retain1`` are required; metrics that need another set are left out if it is missing.

    Args:
        path: folder of one corpus, or of ``news`` and ``books``; null takes the hub.
        corpus: news (BBC) or books (Harry Potter).
        forget_set: ``raw``, or folds: of growing size (scal), or of four successive requests (sust). A fold's name is
            an attribute of its texts, which ``requests`` can name; a text of several folds is one item.
        chunk_tokens: most tokens per chunk of the long texts, never more than ``model.max_length``; published: 2048.

    Reference:
        Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, 2024. arXiv:2407.06460
    """

    path: str | None = None
    corpus: Literal["news", "books"] = "news"
    forget_set: list[Fold] = field(default_factory=lambda: ["raw"])
    chunk_tokens: Annotated[int, Range(at_least, 16)] = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forget = self.forget.or_label("forget")
        if not self.forget_set or len(set(self.forget_set)) < len(self.forget_set):
            raise ValueError(f"forget_set is {self.forget_set}; it must be one or several different folds")

    @override
    def load(self) -> PackedDataset:
        raw = {name: self._texts("raw", name, name == "retain1") for name in RAW[1:]}
        items = self._forgotten() + [_passage(text, "retain1") for text in raw["retain1"]]
        trained = len(items)
        items += [_passage(text, "retain2", "evaluation") for text in raw["retain2"]]
        items += [_passage(text, "holdout") for text in raw["holdout"]]
        items += self._pairs("verbmem", "forget", "verbmem", ("prompt", "gt"))
        for side in ("forget", "retain"):
            items += self._pairs("knowmem", f"{side}_qa", f"knowmem_{side}", ("question", "answer"))
        for side in ("forget", "retain", "holdout"):
            items += [_passage(text, f"privleak_{side}", "evaluation") for text in self._texts("privleak", side)]
        data = PackedDataset(items, torch.arange(len(items)) >= trained, RAW, self.chunk_tokens)
        data.in_context = {
            f"knowmem_{side}": [
                (item.question, item.answer)
                for item in self._pairs("knowmem", f"{side}_qa_icl", "", ("question", "answer"))
            ]
            for side in ("forget", "retain")
        }
        return data

    def _forgotten(self) -> list[TextItem]:
        """Return the texts of the forget sets, each once, with the folds that hold it."""
        folds: dict[tuple[str, int], list[str]] = {}
        for name in self.forget_set:
            part, _, number = name.partition("_")
            texts = Counter[str]()
            for text in self._texts(part, f"forget_{number}" if number else "forget", True):
                texts[text] += 1
                folds.setdefault((text, texts[text]), []).append(name)
        return [_passage(text, "forget", *(one for one in found if one != "raw")) for (text, _), found in folds.items()]

    def _pairs(self, part: str, name: str, attribute: str, keys: tuple[str, str]) -> list[TextItem]:
        """Return the questions of a set, given the keys of question and answer; none if the set is missing."""
        attributes = frozenset({attribute, "evaluation"})
        items = []
        for place, row in self._values(part, name, False):
            if not isinstance(row, dict):
                raise RecipeError(f'{place}: it must be an object with "{keys[0]}" and "{keys[1]}".')
            items.append(TextItem(text_of(place, row, keys[0]), text_of(place, row, keys[1]), "", attributes))
        return items

    def _texts(self, part: str, name: str, needed: bool = False) -> list[str]:
        """Return the texts of a set; none if it is missing and not needed."""
        return [plain_text(place, value) for place, value in self._values(part, name, needed)]

    def _values(self, part: str, name: str, needed: bool) -> Iterator[tuple[str, Any]]:
        repository = f"muse-bench/MUSE-{self.corpus.title()}"
        if self.path is None:
            instead = "Type data.path=FOLDER for a folder of MUSE's layout."
            yield from hub_rows(repository, part, name, instead)
            return
        given = Path(expanduser(self.path))
        folder = given / self.corpus if (given / self.corpus).is_dir() else given
        if not folder.is_dir():
            raise RecipeError(f"data.path: there is no folder {self.path!r}. {LAYOUT} The hub has it: {repository}.")
        for ending in ("json", "jsonl", "txt"):
            file = folder / part / f"{name}.{ending}"
            if file.is_file():
                yield from [(str(file), read_text(file))] if ending == "txt" else read_values(file)
                return
        if needed:
            raise RecipeError(f"data=muse: {folder} lacks {part}/{name}. {LAYOUT} The hub has it: {repository}.")


def _passage(text: str, *attributes: str) -> TextItem:
    """Return a text as MUSE trains and scores it: an excerpt, without an end token."""
    return TextItem("", text, "", frozenset(attributes), goes_on=True)
