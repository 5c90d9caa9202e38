"""Prompts without images, for a trained model that takes prompts."""

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from os.path import expanduser
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.files import read_text
from unlearn.data.base import Batch, Dataset, Source
from unlearn.data.concept import Concept, named

EVERYDAY = (files("unlearn") / "data" / "everyday_prompts.txt").read_text(encoding="utf-8").splitlines()
"""Retain prompts of a recipe that names none."""


@dataclass
class PromptList(Source):
    """Prompts of concepts to forget, and prompts to keep; no images.

    Forget items are the prompts of each concept, one per template. Retain items are the same prompts with each word of
    the concept's ``retain`` list in its place, then ``retain_prompts`` and the lines of ``retain_file``; without any of
    these, captions of everyday scenes that name no concept. The ``probes`` of concepts are the holdout. Labels are the
    words that fill a template; attributes are ``forget``, ``retain`` and ``holdout``. Objectives and evaluators that
    need images refuse this data before any work; most have a setting to use images drawn by the target instead.

    Args:
        concepts: what to forget, and what takes its place.
        retain_prompts: prompts to keep; class names for a class-conditional model.
        retain_file: text file with further ones, one per line.
    """

    concepts: list[Concept] = field(default_factory=list)
    retain_prompts: list[str] = field(default_factory=list)
    retain_file: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forget = self.forget.or_label("forget")

    @override
    def load(self) -> Dataset:
        """Fill in the templates; needs no network. Raises RecipeError for a prompt to forget and to keep."""
        if not self.concepts:
            raise RecipeError("data=prompts needs what to forget. Type data.concepts=[{name: NAME, anchor: OTHER}].")
        forget = [(text, concept.name) for concept in self.concepts for text in concept.prompts()]
        probes = [(text, concept.name) for concept in self.concepts for text in concept.probes]
        kept = [
            (template.replace("{}", word), word)
            for concept in self.concepts
            for word in concept.retain
            for template in concept.templates
        ]
        kept += [(text, "") for text in (*self.retain_prompts, *self._lines())]
        kept = kept or [(text, "") for text in EVERYDAY if not named(text, self.concepts)]
        if both := {text for text, _ in (*forget, *probes)} & {text for text, _ in kept}:
            raise RecipeError(f"data: the prompt {min(both)!r} is both to forget and to keep. Remove one of them.")
        return Prompted({"forget": forget, "retain": kept, "holdout": probes}, self.concepts)

    def _lines(self) -> list[str]:
        if self.retain_file is None:
            return []
        file = Path(expanduser(self.retain_file))
        lines = [line.strip() for line in read_text(file, "data.retain_file").splitlines() if line.strip()]
        if not lines:
            raise RecipeError(f"data.retain_file: {file} holds no prompts. Write one per line.")
        return lines


class Prompted(Dataset):
    """Items that are prompts.

    Args:
        items: (prompt, label) pairs by attribute; duplicates count once. Those of ``holdout`` are test items.
        concepts: see PromptList.
    """

    prompts_only = True

    def __init__(self, items: dict[str, list[tuple[str, str]]], concepts: list[Concept]) -> None:
        rows = [(text, label, name) for name, pairs in items.items() for text, label in dict.fromkeys(pairs)]
        self.concepts = concepts
        self.captions = [text for text, _, _ in rows]
        self.labels = [label for _, label, _ in rows]
        self.attributes = [frozenset({name}) for _, _, name in rows]
        self.is_test: Tensor = torch.tensor([name == "holdout" for _, _, name in rows])
        self.info = {}
        self.fingerprint = hashlib.sha256(repr(rows).encode()).hexdigest()

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return ``id`` and ``label`` (B,) of the items ``ids``."""
        return {"id": ids, "label": self.label_numbers[ids]}
