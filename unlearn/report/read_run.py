"""Reads a run directory back: everything that reports and comparisons are made of."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from unlearn.config.yaml_io import parse
from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError
from unlearn.core.records import Picture, Record, TextTable

TrainingCurves = dict[str, list[tuple[float, float]]]
"""Column of ``metrics.csv`` -> (step, value) pairs by step; nan where a value was not finite."""


TEXTS = ("notes", "failed_gates", "failed_evaluators", "text_tables", "part_folders")
"""Entries of ``metrics.json`` that are lists of text."""
KINDS: dict[str, type] = {
    **dict.fromkeys(TEXTS, list),
    **dict.fromkeys(("packages", "device", "seconds", "state"), dict),
}
"""Entries of ``metrics.json`` that need not be there, with their types."""


@dataclass(frozen=True)
class RunFolder:
    """What one run left on disk.

    Attributes:
        facts: ``metrics.json`` without its records.
        recipe: ``recipe.yaml``, the resolved recipe; ``recipe_text`` is the file itself.
        parts: the runs that this folder summarises: single seeds, or sizes or requests (see ``over``).
    """

    path: Path
    facts: dict[str, Any]
    records: list[Record]
    curves: TrainingCurves
    recipe: dict[str, Any]
    recipe_text: str
    command: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    parts: list[RunFolder] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return str(self.facts.get("recipe") or self.path.name)

    @property
    def status(self) -> str:
        """How the run ended: ``done``, or what stopped it."""
        return str(self.facts.get("status") or "unknown")

    @property
    def over(self) -> str:
        """What the parts differ in: seeds, sizes or requests; empty for a single run."""
        return str(self.facts.get("over") or "seeds") if self.parts else ""

    @property
    def seeds(self) -> list[RunFolder]:
        """The parts, where they are seeds."""
        return self.parts if self.over == "seeds" else []

    @property
    def shown(self) -> RunFolder:
        """The run whose pictures and texts stand for all: the first seed, the last size or request."""
        return self.parts[0 if self.seeds else -1] if self.parts else self

    @property
    def notes(self) -> list[str]:
        """Sentences on what could not be measured for lack of data."""
        return [str(note) for note in self.facts.get("notes") or ()]

    @cached_property
    def pictures(self) -> list[Picture]:
        """The pictures, of several parts those of one; a picture whose file is missing is left out."""
        if self.parts:
            return self.shown.pictures
        found = [(row, self._sample(f"{row['name']}.png")) for row in self.facts.get("pictures") or ()]
        return [Picture(**row, png=path.read_bytes()) for row, path in found if path]

    @cached_property
    def text_tables(self) -> list[TextTable]:
        """The tables of texts, of several parts those of one; a table whose file is missing is left out."""
        if self.parts:
            return self.shown.text_tables
        paths = [self._sample(f"{name}.json") for name in self.facts.get("text_tables") or ()]
        return [_text_table(path) for path in paths if path]

    def part(self, key: str) -> dict[str, Any]:
        """Return one part of the resolved recipe, a bare name as ``{"name": ...}``."""
        return _mapping(self.recipe.get(key))

    def fact(self, key: str) -> dict[str, Any]:
        """Return one mapping of ``metrics.json`` (packages, device, seconds, state)."""
        return _mapping(self.facts.get(key))

    def _sample(self, name: str) -> Path | None:
        """Return a file under ``samples/``, or None if it is missing or lies outside the run directory."""
        path = self.path / "samples" / name
        return path if path.is_file() and path.resolve().is_relative_to(self.path.resolve()) else None


def read_run(folder: Path) -> RunFolder:
    """Read a run directory. Raises RecipeError naming the file that is missing or corrupt, and what to do."""
    if not folder.is_dir():
        raise RecipeError(f"{folder} is not a folder. Give a run directory, e.g. runs/quickstart/<stamp>-<hash>.")
    metrics, environment = folder / "metrics.json", folder / "environment.json"
    facts = _read_json(metrics, "the run stopped before its evaluation. Resume it, or leave this run out")
    rows = facts.pop("records", None)
    if not isinstance(rows, list) or facts.get("schema") != 1 or not _are_pictures(facts.get("pictures") or []):
        raise _corrupt(metrics, "it needs schema 1, a list of records, and pictures with name, title and caption")
    for key, kind in KINDS.items():
        if not isinstance(found := facts.get(key) or kind(), kind):
            raise _corrupt(metrics, f"{key} is a {type(found).__name__}, and must be a {kind.__name__}")
    if not all(isinstance(name, str) for key in TEXTS for name in facts.get(key) or ()):
        raise _corrupt(metrics, f"{', '.join(TEXTS)} must be lists of text")
    if not all(isinstance(value, int | float) for value in (facts.get("seconds") or {}).values()):
        raise _corrupt(metrics, "seconds must be numbers")
    parts = [read_run(_inside(folder, name, metrics)) for name in facts.get("part_folders") or ()]
    text = _read_text(folder / "recipe.yaml") or (parts[0].recipe_text if parts else "")
    return RunFolder(
        path=folder,
        facts=facts,
        records=[_record(row, metrics) for row in rows],
        curves=read_curves(folder / "metrics.csv"),
        recipe=_read_recipe(text, folder / "recipe.yaml"),
        recipe_text=text,
        command=_read_text(folder / "command.txt").strip(),
        environment=_read_json(environment, "") if environment.is_file() else {},
        parts=parts,
    )


def _inside(folder: Path, name: Any, path: Path) -> Path:
    """Return the folder of a part, which lies in its run directory and nowhere else."""
    part = folder / str(name)
    if not isinstance(name, str) or part.resolve().parent != folder.resolve():
        raise _corrupt(path, f"part_folders names {name!r:.80}, which is no folder in it")
    return part


def read_curves(path: Path) -> TrainingCurves:
    """Read training curves. A missing or empty file and a torn last line are no error; the last row of a step wins."""
    if not path.is_file():
        return {}
    found: dict[str, dict[float, float]] = {}
    with reading(path, "Delete the file."), path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            step = _number(row.pop("step", None))
            for column, cell in row.items():
                value = _number(cell)
                if column and step is not None and math.isfinite(step) and value is not None:
                    found.setdefault(column, {})[step] = value if math.isfinite(value) else math.nan
    return {column: sorted(points.items()) for column, points in found.items()}


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _record(row: Any, path: Path) -> Record:
    try:
        return Record.from_dict(row)
    except (AttributeError, OverflowError, TypeError, ValueError):
        raise _corrupt(path, f"this is not a record: {row!r:.200}") from None


def _are_pictures(rows: Any) -> bool:
    keys = {"name", "title", "caption"}
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and set(row) - {"evaluator"} == keys
        and all(isinstance(text, str) for text in row.values())
        for row in rows
    )


def _text_table(path: Path) -> TextTable:
    try:
        return TextTable(**_read_json(path, ""))
    except (TypeError, ValueError) as error:
        raise _corrupt(path, f"it is not a table of texts ({error})") from None


def _read_recipe(text: str, path: Path) -> dict[str, Any]:
    parse(text, str(path))  # refuses what is too deep, or too large once its aliases are expanded
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # e.g. a date that there is not
        raise _corrupt(path, f"it is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise _corrupt(path, "it is missing, or holds no recipe")
    return tree


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"{path} is missing: {remedy}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise _corrupt(path, "it is not a mapping")
    return content


def _corrupt(path: Path, why: str) -> RecipeError:
    return RecipeError(f"{path} cannot be used: {why}. Run the recipe again, or leave this run out.")


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return {} if value is None else {"name": value}
