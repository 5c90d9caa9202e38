"""A run directory, read back: everything that reports and comparisons are made of."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import yaml

from unlearn.core.errors import RecipeError
from unlearn.core.records import Direction, Record

Curves = dict[str, list[tuple[float, float]]]
"""Column of ``metrics.csv`` -> (step, value) pairs by step; nan where a value was not finite."""

_RECORD_KEYS = {item.name for item in fields(Record)}


@dataclass(frozen=True)
class SavedPicture:
    """A picture on disk, with its heading and caption."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class SavedSheet:
    """A table of texts on disk; see ``unlearn.evaluators.base.TextTable``."""

    path: Path
    name: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    truth: str = ""


@dataclass(frozen=True)
class RunFolder:
    """What one run left on disk.

    Attributes:
        facts: ``metrics.json`` without records, pictures and texts.
        recipe: ``recipe.yaml``, the resolved recipe; ``recipe_text`` is the file itself.
        seeds: the runs of the single seeds, where this folder sums up several.
    """

    path: Path
    facts: dict[str, Any]
    records: list[Record]
    pictures: list[SavedPicture]
    curves: Curves
    recipe: dict[str, Any]
    recipe_text: str
    command: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    seeds: list[RunFolder] = field(default_factory=list)
    sheets: list[SavedSheet] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return str(self.facts.get("recipe") or self.path.name)

    @property
    def status(self) -> str:
        """How the run ended; ``done`` when it came to its end."""
        return str(self.facts.get("status") or "unknown")

    @property
    def notes(self) -> list[str]:
        """Sentences on what could not be measured for want of data."""
        return [str(note) for note in self.facts.get("notes") or ()]

    def part(self, key: str) -> dict[str, Any]:
        """Return one part of the resolved recipe, a bare name as ``{"name": ...}``."""
        return _mapping(self.recipe.get(key))

    def fact(self, key: str) -> dict[str, Any]:
        """Return one mapping of ``metrics.json`` (packages, device, seconds, state)."""
        return _mapping(self.facts.get(key))


def read_run(folder: Path) -> RunFolder:
    """Read a run directory. Raises RecipeError naming the file that is missing or wrong, and what to do."""
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder; give a run directory, e.g. runs/quickstart/<stamp>-<hash>.")
    facts = _read_json(folder / "metrics.json", "the run did not get as far as its metrics; resume it or leave it out")
    raw, shown = facts.pop("records", None), facts.pop("pictures", None) or []
    texts = facts.pop("sheets", None) or []
    if not isinstance(raw, list) or facts.get("schema") != 1 or not all(isinstance(x, list) for x in (shown, texts)):
        raise _corrupt(folder / "metrics.json", "it needs schema 1, a list of records and a list of pictures")
    seeds = [read_run(folder / str(name)) for name in facts.get("seed_folders") or ()]
    text = _read_text(folder / "recipe.yaml") or (seeds[0].recipe_text if seeds else "")
    environment = folder / "environment.json"
    return RunFolder(
        path=folder,
        facts=facts,
        records=[_record(row, folder / "metrics.json") for row in raw],
        pictures=[picture for row in shown if (picture := _picture(row, folder))],
        curves=read_curves(folder / "metrics.csv"),
        recipe=_read_recipe(text, folder / "recipe.yaml"),
        recipe_text=text,
        command=_read_text(folder / "command.txt").strip(),
        environment=_read_json(environment, "") if environment.is_file() else {},
        seeds=seeds,
        sheets=[sheet for row in texts if (sheet := _sheet(row, folder))],
    )


def read_curves(path: Path) -> Curves:
    """Read training curves; no file, an empty file and a torn last line are no error. Later rows of a step win."""
    if not path.is_file():
        return {}
    found: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            step = _number(row.pop("step", None))
            for column, cell in row.items():
                value = _number(cell)
                if column and step is not None and value is not None:
                    found.setdefault(column, {})[step] = value if math.isfinite(value) else math.nan
    return {column: sorted(points.items()) for column, points in found.items()}


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _record(row: Any, path: Path) -> Record:
    """Build a record from its row; null is an undefined value."""
    if (
        not isinstance(row, dict)
        or set(row) - _RECORD_KEYS
        or not all(isinstance(row.get(key), str) for key in ("evaluator", "metric", "subject"))
    ):
        raise _corrupt(path, f"this is no record: {row!r:.200}")
    value, interval, about = row.get("value"), row.get("ci95"), row.get("about") or {}
    detector = row.get("detector") or {}
    if not isinstance(value, int | float | None) or not isinstance(about, dict) or not isinstance(detector, dict):
        raise _corrupt(path, f"this is no record: {row!r:.200}")
    pair = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
    ends = [float(end) for end in pair if isinstance(end, int | float)]
    direction = row.get("direction", "none")
    return Record(
        evaluator=row["evaluator"],
        metric=row["metric"],
        subject=row["subject"],
        value=math.nan if value is None else float(value),
        split=str(row.get("split") or ""),
        about={str(key): str(item) for key, item in about.items()},
        seed=int(row.get("seed") or 0),
        ci95=(ends[0], ends[1]) if len(ends) == 2 else None,
        n=int(row.get("n") or 0),
        direction=direction if direction in get_args(Direction) else "none",
        unit=str(row.get("unit") or ""),
        detector={str(key): str(item) for key, item in detector.items()},
    )


def _picture(row: Any, folder: Path) -> SavedPicture | None:
    """Find a picture's file; one that is gone, or lies outside the run, is left out."""
    if not isinstance(row, dict) or "name" not in row:
        return None
    path = folder / str(row.get("file") or f"samples/{row['name']}.png")
    if not _lies_in(folder, path):
        return None
    return SavedPicture(path, str(row.get("title") or row["name"]), str(row.get("caption") or ""))


def _sheet(row: Any, folder: Path) -> SavedSheet | None:
    """Read a table of texts; one that is gone, lies outside the run or is no such table is left out."""
    if not isinstance(row, dict) or "name" not in row:
        return None
    path = folder / str(row.get("file") or f"samples/{row['name']}.json")
    if not _lies_in(folder, path):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        columns, lines = list(map(str, content["columns"])), [list(map(str, line)) for line in content["rows"]]
    except (ValueError, KeyError, TypeError):
        return None
    if not columns or any(len(line) != len(columns) for line in lines):
        return None
    title, caption, truth = (str(content.get(key) or "") for key in ("title", "caption", "truth"))
    return SavedSheet(path, str(row["name"]), title or str(row["name"]), caption, columns, lines, truth)


def _lies_in(folder: Path, path: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _read_recipe(text: str, path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _corrupt(path, f"it is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise _corrupt(path, "it is missing or holds no recipe")
    return tree


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"{path} is missing: {remedy}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _corrupt(path, f"it is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise _corrupt(path, "it holds no mapping")
    return content


def _corrupt(path: Path, why: str) -> RecipeError:
    return RecipeError(f"{path} cannot be used: {why}. Run the recipe again, or leave this run out.")


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return {} if value is None else {"name": value}
