"""Study files: which recipes are compared, over which seeds, and in which columns. Imports no torch."""

import re
import shlex
from dataclasses import dataclass, field, replace
from os.path import expanduser
from pathlib import Path
from typing import Any

from unlearn.config import packaged
from unlearn.config.arguments import take
from unlearn.config.compose import given
from unlearn.config.recipe import LONGEST
from unlearn.config.schema import SUBJECTS, About
from unlearn.config.structured import build, convert
from unlearn.config.yaml_io import parse
from unlearn.core.errors import RecipeError, did_you_mean, shorten
from unlearn.core.validation import distinct

FOLDER = Path("runs/studies")


@dataclass
class Member:
    """One row of the table.

    Args:
        recipe: name or path of its recipe; by default the study's.
        settings: ``key=value`` applied to it.
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
        absolute: whether to take the absolute difference.
        evaluator: key of the evaluator in the recipes, if several entries give the metric; "" for any.
    """

    metric: str = "???"
    split: str = ""
    subject: str = "unlearned"
    about: dict[str, str] = field(default_factory=dict)
    minus: str | None = None
    absolute: bool = False
    evaluator: str = ""

    def __post_init__(self) -> None:
        for name, subject in (("subject", self.subject), ("minus", self.minus)):
            if subject is not None and subject not in SUBJECTS:
                raise ValueError(f"{name} is {subject!r}. {did_you_mean(subject, SUBJECTS)}")


@dataclass
class StudySpec:
    """A study as its file gives it.

    Args:
        about: its title.
        recipe: name or path of the recipe of all runs that name none.
        runs: name of a row -> its recipe and settings.
        seeds: different numbers from 0.
        overrides: ``key=value`` applied to every recipe.
        columns: heading -> figure.
        references: subjects that get their own row, such as the retrained model.
        order: column by which the rows are ordered, best first; empty keeps the file's order.
    """

    about: About = field(default_factory=About)
    recipe: str = ""
    runs: dict[str, Member] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    overrides: list[str] = field(default_factory=list)
    columns: dict[str, Column] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)
    order: str = ""

    def __post_init__(self) -> None:
        for name in ("runs", "columns"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; it must be a mapping with an entry for each")
        distinct(self, seeds=0)
        for subject in self.references:
            if subject not in SUBJECTS:
                raise ValueError(f"references: there is no subject {subject!r}. {did_you_mean(subject, SUBJECTS)}")
        if self.order and self.order not in self.columns:
            raise ValueError(f"order: there is no column {self.order!r}. {did_you_mean(self.order, self.columns)}")
        folders: dict[str, str] = {}
        for row in self.runs:
            if len(slug(row)) > LONGEST:
                raise ValueError(f"the name of a run has {len(row)} characters; it becomes a folder: {LONGEST} at most")
            if (first := folders.setdefault(slug(row), row)) != row:
                raise ValueError(f"the runs {first!r} and {row!r} would share a folder; rename one")


@dataclass(frozen=True)
class Study:
    """A study with the command line's settings applied.

    Attributes:
        name: of the study, and of its block in a document.
        spec: its file's content.
        runs: name of a row -> its recipe and all settings, of the chosen rows.
        folder: where runs and tables are written.
        asked: its name or path, and settings, as typed.
    """

    name: str
    spec: StudySpec
    runs: dict[str, Member]
    folder: Path
    asked: str


def read_study(study: str, settings: list[str]) -> Study:
    """Return a study with the command line's settings applied.

    Args:
        study: name of a packaged study, or path of a file that ends in .yaml.
        settings: ``seeds=[0,1]``, ``runs=[NAME, ...]`` (only these), ``order=COLUMN`` and ``output=DIR`` are the
            study's own; every other ``key=value`` goes to the recipes of all runs.

    Raises:
        RecipeError: anything is wrong with it; the message names the key, what was given and what is allowed.
    """
    document = packaged.read(study, "study")
    name = slug(Path(study).stem) if packaged.is_path(study) else study
    _refuse_own(settings, "a study")
    own, for_all = take(settings, ("seeds", "runs", "order", "output"))
    laid: dict[str, Any] = given(document.tree, document.origin)  # type: ignore[assignment]
    if "seeds" in own:
        laid["seeds"] = given(parse(own["seeds"], "seeds"), "command line")
    if "order" in own:
        laid["order"] = given(own["order"], "command line")
    spec: StudySpec = build(StudySpec, laid, "").value
    chosen = convert(parse(own["runs"], "runs"), list[str], "runs") if "runs" in own else list(spec.runs)
    if not chosen:
        raise RecipeError(f"runs is empty; name at least one. {did_you_mean('', spec.runs)}")
    for row in chosen:
        if row not in spec.runs:
            raise RecipeError(f"runs: the study has no run {shorten(row)}. {did_you_mean(row, spec.runs)}")
    runs = {
        row: _complete(row, member, spec, for_all, document.folder)
        for row, member in spec.runs.items()
        if row in chosen
    }
    folder = Path(expanduser(own["output"])) if "output" in own else FOLDER / name
    return Study(name, spec, runs, folder, shlex.join([study, *settings]))


def _refuse_own(settings: list[str], where: str) -> None:
    """Refuse settings that the study decides itself."""
    remedies = {"seed": "write seeds=[0,1,2]", "recipe": "the study names them", "resume": "type the command again"}
    for key in take(settings, remedies)[0]:
        raise RecipeError(f"{where} takes no {key}=; {remedies[key]}.")


def slug(row: str) -> str:
    """Return a run's name as a folder name."""
    return re.sub(r"[^a-z0-9_-]+", "_", row.lower()).strip("_") or "run"


def _complete(row: str, member: Member, spec: StudySpec, for_all: list[str], folder: Path) -> Member:
    """Return a run with its recipe and all its settings; a path is relative to the study's file, as in ``base:``."""
    recipe = member.recipe or spec.recipe
    _refuse_own(member.settings, f"runs.{row}.settings")
    _refuse_own(spec.overrides, "overrides")
    if not recipe:
        raise RecipeError(f"runs.{row} has no recipe; write runs.{row}.recipe, or recipe for all runs.")
    if packaged.is_path(recipe):
        recipe = str(folder / Path(expanduser(recipe)))
    return replace(member, recipe=recipe, settings=[*member.settings, *spec.overrides, *for_all])
