"""The runs of a study: their folders and states, and how each is run in a process of its own."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.config.compatibility import check_declared, measured_by
from unlearn.config.recipe import load
from unlearn.config.schema import Recipe
from unlearn.core.errors import Interrupted, RecipeError, did_you_mean, shorten
from unlearn.evaluators.base import Evaluator
from unlearn.report.read_run import read_run
from unlearn.study.spec import Member, Study, slug

START = ("python", "-m", "unlearn.run")


@dataclass(frozen=True, eq=False)
class Part:
    """One seed of one run.

    Attributes:
        row: name of the run in the table.
        hash: of its resolved recipe; it is part of the folder's name, so that changed settings start a new run.
    """

    row: str
    member: Member
    seed: int
    hash: str
    folder: Path

    @property
    def log(self) -> Path:
        """The file with the run's output."""
        return self.folder.with_name(f"{self.folder.name}.txt")

    @property
    def state(self) -> str:
        """Its state: done, gate missed, failed, unfinished or not run."""
        try:
            status = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError, RecursionError):
            return "not run"
        if not isinstance(status, dict) or status.get("hash") != self.hash:
            return "not run"
        if status.get("status") != "done":
            return "failed" if status.get("status") == "failed" else "unfinished"
        return "gate missed" if read_run(self.folder).facts.get("failed_gates") else "done"

    @property
    def finished(self) -> bool:
        """Whether it has figures."""
        return self.state in ("done", "gate missed")

    def command(self) -> list[str]:
        """Return the arguments that start or resume the run."""
        if self.state in ("unfinished", "failed"):
            return [f"resume={self.folder}"]
        recipe, settings = self.member.recipe, self.member.settings
        return [f"recipe={recipe}", *settings, f"seed={self.seed}", f"output={self.folder}"]


def parts(study: Study) -> list[Part]:
    """Return every seed of every run. Raises RecipeError naming every run whose recipe does not load."""
    found, wrong = [], []
    entries: dict[tuple[str, str], Evaluator[Any]] = {}
    for row, member in study.runs.items():
        try:
            for seed in study.spec.seeds:
                recipe = load(member.recipe, [*member.settings, f"seed={seed}"])
                found.append(_part(study, row, member, seed, recipe))
                entries |= {(row, name): evaluator for name, evaluator in recipe.evaluate.items()}
        except RecipeError as error:
            wrong.append(f"{row}: {error}")
    if wrong:
        others = [text.partition(" Did you mean: ")[0].partition(" Allowed: ")[0] for text in wrong[1:]]
        raise RecipeError("\n".join([wrong[0], *others]))  # the allowed names are listed once
    if len(study.runs) == len(study.spec.runs):  # of some of its runs, the others may have what a column shows
        _check_columns(study, entries)
    return found


def _check_columns(study: Study, entries: Mapping[tuple[str, str], Evaluator[Any]]) -> None:
    """Refuse a column that no run can fill.

    Args:
        study: with all its runs.
        entries: (row, key of an entry of evaluate) -> evaluator.
    """
    for heading, column in study.spec.columns.items():
        able = {f"{row}.{name}": one for (row, name), one in entries.items() if column.evaluator in ("", name)}
        if column.evaluator and not able:
            known = did_you_mean(column.evaluator, dict.fromkeys(name for _, name in entries))
            raise RecipeError(
                f"columns.{heading}.evaluator is {shorten(column.evaluator)}, an entry of no run. {known}"
            )
        check_declared(f"columns.{heading}", column.metric, "", able)


def _part(study: Study, row: str, member: Member, seed: int, recipe: Recipe) -> Part:
    if recipe.output is not None:
        raise RecipeError("a study chooses the folders of its runs; leave output out of the recipe.")
    for heading, column in study.spec.columns.items():
        if column.evaluator in ("", *recipe.evaluate):  # an entry that only other runs have leaves a cell empty
            measured_by(f"columns.{heading}", column.metric, column.evaluator, recipe.evaluate)
    return Part(row, member, seed, recipe.hash, study.folder / slug(row) / f"seed-{seed}-{recipe.hash[:6]}")


def carry_out(part: Part) -> str:
    """Run one part by the command line; return why it failed, "" if it finished.

    Raises:
        Interrupted: the user stopped it; its state is saved.
    """
    arguments = part.command()
    part.folder.parent.mkdir(parents=True, exist_ok=True)
    with part.log.open("a") as log:
        log.write(f"{shlex.join([*START, *arguments])}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "unlearn.run", *arguments],
            stdout=log,
            stderr=log,
            start_new_session=True,  # the run gets Ctrl-C once, from here: a second one would cut off saving
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop(process)
            raise Interrupted("Stopped; what was done is kept. To go on, type the same command.") from None
    if code == Interrupted.exit_code:
        raise Interrupted(f"{part.row} was interrupted; its state is saved. To go on, type the same command.")
    return "" if part.finished else why_failed(part, code)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let a run save its state; a second Ctrl-C ends it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        raise


def why_failed(part: Part, code: int | None = None) -> str:
    """Return the last line that a failed run printed, or what ended it."""
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name} (out of memory?)"
    try:
        lines = [line.strip() for line in part.log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1] if lines else f"exit code {code}"
