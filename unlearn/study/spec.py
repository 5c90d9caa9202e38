"""Study files: which recipes are compared, over which seeds, and in which columns. Imports no torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.config.compose import Given
from unlearn.config.structured import build, convert
from unlearn.config.studies import names, text_of
from unlearn.config.yaml_io import Tree, parse
from unlearn.core.errors import RecipeError, did_you_mean, shorten

KEYS = ("about", "recipe", "runs", "seeds", "overrides", "columns", "references", "order")
SUBJECTS = ("target", "unlearned", "retrained", "teacher", "clean", "corrupted", "target_latent")
FOLDER = Path("runs/studies")


@dataclass
class Title:
    """What a study is about.

    Args:
        title: one line.
    """

    title: str = ""


@dataclass
class Member:
    """One row of the table.

    Args:
        recipe: name or path of its recipe; by default the study's.
        settings: ``key=value`` laid over it.
    """

    recipe: str = ""
    settings: list[str] = field(default_factory=list)


@dataclass
class Column:
    """One column of the table.

    Args:
        metric: metric name, see docs/metrics.md.
        split: split of the record, "" for any.
        subject: subject of the record.
        about: required entries of the record's ``about``.
        minus: subject whose value is subtracted, seed by seed.
        absolute: whether the difference counts without its sign.
    """

    metric: str = "???"
    split: str = ""
    subject: str = "unlearned"
    about: dict[str, str] = field(default_factory=dict)
    minus: str | None = None
    absolute: bool = False

    def __post_init__(self) -> None:
        """Refuse subjects that no record has."""
        for name, given in (("subject", self.subject), ("minus", self.minus)):
            if given is not None and given not in SUBJECTS:
                raise ValueError(f"{name} is {given!r}. {did_you_mean(given, SUBJECTS)}")


@dataclass(frozen=True)
class Study:
    """A study as its file has it.

    Attributes:
        runs: name of a row -> its recipe and settings, the study's overrides among them.
        references: subjects that get a row of their own, such as the retrained model.
        order: column by which the rows are ordered, best first; empty keeps the file's order.
        asked: what was typed to get it: its name or path, and settings.
    """

    name: str
    title: str
    runs: dict[str, Member]
    seeds: list[int]
    columns: dict[str, Column]
    references: list[str]
    order: str
    folder: Path
    asked: str


def read_study(study: str, settings: list[str]) -> Study:
    """Return a study with what the command line says laid over it.

    Args:
        study: name of a packaged study, or path of a file that ends in .yaml.
        settings: ``seeds=[0,1]``, ``runs=[NAME, ...]`` (only these), ``order=COLUMN`` and ``output=DIR`` are the
            study's own; every other ``key=value`` goes to the recipes of all runs.

    Raises:
        RecipeError: anything is wrong with it; the message names the key, what was given and what is allowed.
    """
    name, origin, tree = _read(study)
    beside = Path(origin).expanduser().parent if origin == study else Path()
    for key in tree:
        if key not in KEYS:
            raise RecipeError(f"{origin}: a study has no key {shorten(key)}. {did_you_mean(key, KEYS)}")
    own, for_all = _sorted(settings)
    base, overrides = (
        convert(tree.get(key), hint, key) for key, hint in (("recipe", str | None), ("overrides", list[str] | None))
    )
    runs = {
        row: _member(Given(entry, origin), row, base, [*(overrides or ()), *for_all], beside)
        for row, entry in _entries(tree, "runs", origin).items()
    }
    columns = {
        heading: build(Column, Given(entry, origin), f"columns.{heading}").value
        for heading, entry in _entries(tree, "columns", origin).items()
    }
    seeds = convert(own.get("seeds", tree.get("seeds", "0")), list[int], "seeds")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise RecipeError(f"seeds is {shorten(seeds)}; it must be one or several different numbers from 0.")
    references = convert(tree.get("references", []), list[str], "references")
    for subject in references:
        if subject not in SUBJECTS:
            raise RecipeError(f"references: there is no subject {shorten(subject)}. {did_you_mean(subject, SUBJECTS)}")
    order = convert(own.get("order", tree.get("order")), str | None, "order") or ""
    if order and order not in columns:
        raise RecipeError(f"order: there is no column {shorten(order)}. {did_you_mean(order, columns)}")
    about = build(Title, Given(tree.get("about"), origin), "about").value
    folder = Path(str(own["output"])).expanduser() if "output" in own else FOLDER / name
    asked = shlex.join([study, *settings])
    return Study(name, about.title or name, _chosen(runs, own), seeds, columns, references, order, folder, asked)


def slug(row: str) -> str:
    """Return a run's name as it stands in a path."""
    return re.sub(r"[^a-z0-9_-]+", "_", row.lower()).strip("_") or "run"


def _read(study: str) -> tuple[str, str, dict[str, Tree]]:
    """Return name, origin and content of a study."""
    if study.endswith((".yaml", ".yml")):
        path = Path(study).expanduser()
        if not path.is_file():
            raise RecipeError(f"there is no study file {shorten(study)}. Packaged studies: {', '.join(names())}.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise RecipeError(f"the study {shorten(study)} cannot be read: {error}.") from error
        name, origin = slug(path.stem), study
    elif study in names():
        name, origin, text = study, f"{study}.yaml", text_of(study)
    else:
        hint = "A file goes by its path, ending in .yaml."
        raise RecipeError(f"there is no study {shorten(study)}. {did_you_mean(study, names())} {hint}")
    tree = parse(text, origin)
    if not isinstance(tree, dict):
        raise RecipeError(f"{origin} must hold a mapping (runs: ..., columns: ...), not {shorten(tree)}.")
    return name, origin, tree


def _entries(tree: Mapping[str, Tree], key: str, origin: str) -> dict[str, Tree]:
    entries = tree.get(key)
    if not isinstance(entries, dict) or not entries:
        raise RecipeError(f"{origin}: {key} is {shorten(entries)}; it must be a mapping with an entry for each.")
    return entries


def _member(entry: Given, row: str, base: str | None, overrides: list[str], beside: Path) -> Member:
    """Build one run; the path of its recipe is relative to the study's file, as that of a ``base:``."""
    member: Member = build(Member, entry, f"runs.{row}").value
    recipe = member.recipe or base
    if not recipe:
        raise RecipeError(f"runs.{row} has no recipe{_by(entry)}; write runs.{row}.recipe, or recipe for all runs.")
    if recipe.endswith((".yaml", ".yml")):
        recipe = str(beside / Path(recipe).expanduser())
    return Member(recipe, [*member.settings, *overrides])


def _sorted(settings: list[str]) -> tuple[dict[str, Tree], list[str]]:
    """Sort the command line's settings into the study's own and those for every recipe."""
    own: dict[str, Tree] = {}
    for_all = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"{shorten(setting)} is no setting; write key=value, such as optim.lr=1e-4.")
        if key in ("seed", "recipe", "resume"):
            remedy = {"seed": "write seeds=[0,1,2]", "recipe": "the study names them", "resume": "type it again"}[key]
            raise RecipeError(f"{shorten(setting)}: a study takes no {key}=; {remedy}.")
        if key in ("seeds", "runs", "order", "output"):
            if not value:
                raise RecipeError(f"{key}= has no value; write {key}=VALUE.")
            own[key] = value if key in ("order", "output") else parse(value, setting)
        else:
            for_all.append(setting)
    return own, for_all


def _chosen(runs: dict[str, Member], own: Mapping[str, Tree]) -> dict[str, Member]:
    """Return the runs that the command line chooses, or all; two that would share a folder are refused."""
    wanted: Any = convert(own["runs"], list[str], "runs") if "runs" in own else list(runs)
    for row in wanted:
        if row not in runs:
            raise RecipeError(f"the study has no run {shorten(row)}. {did_you_mean(row, runs)}")
    places: dict[str, str] = {}
    for row in runs:
        if slug(row) in places:
            raise RecipeError(f"the runs {places[slug(row)]!r} and {row!r} would share a folder; rename one.")
        places[slug(row)] = row
    return {row: member for row, member in runs.items() if row in wanted}


def _by(given: Given) -> str:
    return f" ({given.origin})" if given.origin else ""
