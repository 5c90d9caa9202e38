"""A run from recipe to report: data, target, unlearning, evaluation, export."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch

from unlearn.config.compatibility import check_capabilities, check_subjects
from unlearn.config.schema import Recipe
from unlearn.core.commands import resume_command
from unlearn.core.distributed import barrier, launch, rank
from unlearn.core.errors import EvaluationFailed, GateFailed, Interrupted, RecipeError
from unlearn.core.records import Record
from unlearn.core.shown import printable
from unlearn.core.torch_settings import own_settings
from unlearn.data.base import Dataset
from unlearn.data.loading import load_data
from unlearn.evaluators.base import EvaluationResult, RunFacts
from unlearn.experiment.dry_run import dry_run
from unlearn.experiment.inputs import RunInputs, gather_inputs, rehearse, remarks
from unlearn.experiment.measuring import measure
from unlearn.experiment.model_store import StoredModel
from unlearn.experiment.outcome import (
    MODEL,
    Outcome,
    is_whole,
    read_outcome,
    refuse_changed,
    result_before,
    write_outcome,
)
from unlearn.experiment.output_folder import new_folder
from unlearn.experiment.part_summary import write_summary
from unlearn.experiment.parts import over, parts_of
from unlearn.experiment.run_dir import RunDir, header
from unlearn.experiment.unlearning import unlearn
from unlearn.models.base import Wrapper
from unlearn.report.card import write_model_card
from unlearn.report.page import build_report
from unlearn.report.read_run import read_run
from unlearn.report.table import metrics_table
from unlearn.report.verdict import check_gates
from unlearn.training.fit import check_machine, quiet_lightning


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        folder: the run directory.
        records: every figure; means over seeds where there were several.
        model: the unlearned wrapper (of the last part), on the CPU.
        failed_gates: one sentence for each gate that was missed.
        failed_evaluators: one sentence for each evaluator that raised an error.
    """

    folder: Path
    records: list[Record]
    model: Wrapper
    failed_gates: list[str] = field(default_factory=list)
    failed_evaluators: list[str] = field(default_factory=list)

    @classmethod
    def over_parts(cls, run_dir: RunDir, recipe: Recipe, results: Sequence[Result]) -> Result:
        """Write the summary of several seeds, sizes or requests and return it, with what failed in any of them."""
        records: list[Record] = []
        if rank() == 0:
            records = write_summary(run_dir.folder, [result.folder for result in results], over(recipe))
            run_dir.end(metrics_table(records), complete=not any(result.failed_evaluators for result in results))
        barrier()
        gates = [f"{result.folder.name}: {gate}" for result in results for gate in result.failed_gates]
        evaluators = [f"{result.folder.name}: {line}" for result in results for line in result.failed_evaluators]
        return cls(run_dir.folder, records, results[-1].model, gates, evaluators)

    def checked(self) -> Result:
        """Return this result if nothing failed.

        Raises:
            EvaluationFailed: an evaluator raised an error.
            GateFailed: a gate was missed.
        """
        if self.failed_evaluators:
            raise EvaluationFailed("\n".join([*self.failed_evaluators, *self.failed_gates]), self)
        if self.failed_gates:
            raise GateFailed("\n".join(self.failed_gates), self)
        return self


def run(recipe: Recipe, command: Sequence[str] = (), model: Any = None, folder: Path | None = None) -> Result:
    """Carry out a recipe, once per seed, and for each of them once per size or request.

    Args:
        recipe: what to do.
        command: the command line, kept in the run directory.
        model: the target, where it is already in memory: a wrapper, or what the backend's wrapper can wrap. It is
            not changed.
        folder: an unfinished run directory to resume; by default a new one.

    Raises:
        RecipeError: something is wrong with the recipe or the data; nothing was written.
        Interrupted: the user stopped the run; resuming goes on where it stood.
        EvaluationFailed: an evaluator raised an error; everything else is complete.
        GateFailed: a figure misses its threshold; the run is complete.
    """
    check_capabilities(recipe, type(model) if isinstance(model, Wrapper) else recipe.model.wrapper)
    check_subjects(recipe, in_memory=model is not None)
    check_machine(recipe.trainer)
    if folder is None:
        new_folder(recipe)  # says now what is wrong with ``output``, not after the work
    dataset = load_data(recipe.data)
    if model is not None and not isinstance(model, Wrapper):
        model = recipe.model.wrapper.adopt(model, dataset.info)
    if model is None:
        dataset = recipe.model.data_as_read(dataset)
    else:
        dataset = model.read(dataset)
        model.check_items(dataset)
    rehearse(recipe, dataset)
    if recipe.trainer.threads is not None:
        torch.set_num_threads(recipe.trainer.threads)
    quiet_lightning()
    launch(recipe.trainer.devices, recipe.trainer.accelerator)
    if parts_of(recipe):
        return _several_parts(recipe, command, model, dataset, folder).checked()
    return SingleRun(recipe, command, model, dataset, folder).carry_out().checked()


def resume(folder: Path, settings: Sequence[str] = ()) -> Result:
    """Resume an unfinished run, measure one anew of which an evaluator failed, or make again what one has lost.

    Args:
        folder: the run directory.
        settings: ``key=value`` of ``evaluate`` and ``gate``; everything else stays as the run began.

    Raises:
        RecipeError: the folder holds no run, or a finished one.
    """
    run_dir = RunDir(folder)
    status = run_dir.status()
    if not status:
        raise RecipeError(f"{folder} holds no run (it has no run.json). Type resume=auto, or the folder of a run.")
    if status["in_memory"]:
        raise RecipeError(
            f"{folder} began from a model in memory, which is not stored. Call unlearn.unlearn(model, ...) again."
        )
    judged = "judged model" in status.get("works_on", {})  # has no model of its own
    if status["status"] == "done" and (judged or is_whole(folder, run_dir.recipe(settings))):
        raise RecipeError(
            f"{folder} holds a finished run; there is nothing to resume. Its report: {folder}/report.html. To measure "
            f"more: python -m unlearn.evaluate {folder} evaluate.NAME={{}}"
        )
    return run(run_dir.recipe(settings), status["command"], folder=folder)


def find_unfinished(recipe: Recipe | None) -> Path | None:
    """Return the newest unfinished run of a recipe (of the same hash), or of any recipe; None where there is none."""
    roots = [Path("runs")] + ([Path(expanduser(recipe.output))] if recipe and recipe.output else [])
    found = []
    for path in (path for root in roots for path in root.glob("**/run.json")):
        try:
            status = RunDir(path.parent).status()
        except RecipeError as broken:
            print(printable(f"passed over: {broken}"), file=sys.stderr)
            continue
        same = recipe is None or status.get("hash") == recipe.hash
        open_ = status.get("status") == "running" and not status.get("in_memory") and not status.get("parent")
        if same and open_ and not RunDir(path.parent).is_held():
            found.append((status["started"], path.parent))
    return max(found)[1] if found else None


def check(recipe: Recipe, resumes: bool = False) -> str:
    """Build everything, take a step and call every evaluator; return sizes, scope, time and memory as text.

    See ``dry_run``; of a model given by path whose weights are large, only the configuration is read. With ``resumes``
    the run would go on with an unfinished one of the same recipe where there is one.
    """
    check_capabilities(recipe, recipe.model.wrapper)
    check_subjects(recipe)
    check_machine(recipe.trainer)
    if not (resumes and find_unfinished(recipe)):
        new_folder(recipe)  # refuses an ``output`` that the run would refuse
    dataset = recipe.model.data_as_read(load_data(recipe.data))
    splits = rehearse(recipe, dataset)
    return dry_run(recipe, dataset, splits)


def _several_parts(
    recipe: Recipe,
    command: Sequence[str],
    model: Any,
    dataset: Dataset,
    folder: Path | None,
    parent: Path | None = None,
) -> Result:
    """Carry out a recipe once per seed, or once per size or request, then summarise; what is finished is not redone."""
    folder = folder or new_folder(recipe)
    run_dir, whole = RunDir(folder, parent), parent or folder
    with run_dir.held():
        run_dir.begin(recipe, command, in_memory=model is not None)
        results = []
        for name, part in parts_of(recipe).items():
            place = RunDir(folder / name)
            if parts_of(part):
                results.append(_several_parts(part, command, model, dataset, folder / name, whole))
            elif place.status().get("status") == "done" and place.has(part) and is_whole(folder / name, part):
                results.append(_finished(part, folder / name, whole))
            else:
                results.append(SingleRun(part, command, model, dataset, folder / name, whole).carry_out())
        return Result.over_parts(run_dir, recipe, results)


class SingleRun:
    """One seed and one request of a recipe, from its inputs to its report.

    Args:
        recipe: with one seed, and one request where it has any.
        command: the command line, kept in the run directory.
        model: the target, where it is already in memory.
        dataset: the data as the model reads it.
        folder: the run directory; None for a new one, which is made once the inputs are known to be sound.
        parent: the folder of the run over several parts that this one belongs to.
    """

    def __init__(
        self,
        recipe: Recipe,
        command: Sequence[str],
        model: Wrapper | None,
        dataset: Dataset,
        folder: Path | None,
        parent: Path | None = None,
    ) -> None:
        self.recipe, self.command, self.model, self.dataset = recipe, command, model, dataset
        self.folder, self.parent = folder, parent
        self.seed = recipe.seeds[0]
        self.seconds: dict[str, float] = {}

    def carry_out(self) -> Result:
        """Gather the inputs, unlearn, measure, and write everything into the run directory."""
        with self._timed("inputs"), self._stopping():
            inputs = gather_inputs(self.recipe, self.seed, self.model, self.dataset, start=self._start())
        self.folder = self.folder or new_folder(self.recipe)
        run_dir = RunDir(self.folder, self.parent)
        with run_dir.held(), self._stopping():
            self._begin(run_dir, inputs)
            with own_settings():
                outcome = self._outcome(run_dir, inputs)
            run_dir.say(f"took {outcome.facts.steps} steps in {outcome.facts.seconds:.1f} s; measuring")
            with self._timed("evaluation"):
                findings = measure(self.recipe, inputs, outcome, self.seed)
            failed = missed_gates(self.recipe, findings.records)
            if rank() == 0:
                self._write(run_dir, findings, outcome.facts, failed)
            barrier()
        return Result(self.folder, findings.records, outcome.model, failed, findings.failures)

    def _start(self) -> StoredModel | None:
        """Return the model that the request before made, where there was one."""
        if self.recipe.requests is None or not self.recipe.requests.before:
            return None
        if self.folder is None:
            raise RecipeError(
                f"requests.at is {self.recipe.requests.at}, and this request begins from the result of the one before. "
                "Type requests.at=null, which carries out all of them."
            )
        return result_before(self.folder, self.recipe, self.parent or self.folder.parent)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Say how a stopped run goes on, whether its steps saved their state or something else was cut off."""
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as stop:
            said, folder = str(stop) if isinstance(stop, Interrupted) else "Stopped.", self.parent or self.folder
            if folder is not None and not (folder / "run.json").is_file():  # it was deleted, or has not begun
                raise Interrupted(f"Stopped. {folder} holds nothing of the run; start it again.") from None
            if folder is None:
                remedy = "type the same command again."
            elif self.model is not None:
                remedy = "call unlearn again"
            else:
                remedy = f"type: {resume_command(folder)}"
            raise Interrupted(f"{said} To go on, {remedy}") from None

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = time.monotonic() - began

    def _begin(self, run_dir: RunDir, inputs: RunInputs) -> None:
        """Write and say what is known before the first step."""
        run_dir.begin(self.recipe, self.command, in_memory=self.model is not None)
        run_dir.keep(inputs.facts)
        run_dir.write_splits(inputs.splits)
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in inputs.splits.items())
        run_dir.say(f"{self.recipe.name}, seed {self.seed}: {sizes}; target {inputs.target.origin}")
        for line in remarks(inputs.splits):
            run_dir.say(line)

    def _outcome(self, run_dir: RunDir, inputs: RunInputs) -> Outcome:
        """Unlearn, and write the model before anything is measured; a run that came so far goes on from there."""
        outcome = read_outcome(self.recipe, inputs, run_dir.folder, self.seed)
        if outcome is None:
            outcome = unlearn(self.recipe, inputs, self.seed, run_dir)
            if rank() == 0:
                write_outcome(outcome, self.recipe, inputs, run_dir.folder)
            barrier()
        self.seconds |= outcome.seconds
        return outcome

    def _write(self, run_dir: RunDir, findings: EvaluationResult, facts: RunFacts, failed: list[str]) -> None:
        """Write everything about the model; ``run.json`` says done only after all of it."""
        run_dir.write_findings(findings, header(self.recipe, self.seed, facts, self.seconds, failed, findings))
        write_model_card(run_dir.folder)
        build_report(run_dir.folder)
        run_dir.end(metrics_table(findings.records), complete=not findings.failed)


def missed_gates(recipe: Recipe, records: Sequence[Record]) -> list[str]:
    """Return one sentence per missed gate; a figure that was not measured misses its gate."""
    goals = check_gates(recipe.gate, records)
    return [f"gate.{goal.name} missed: {goal.text}; found {goal.found}." for goal in goals if not goal.met]


def _finished(recipe: Recipe, folder: Path, whole: Path) -> Result:
    """Return the result of a part that was finished before."""
    refuse_changed(folder, whole)
    records = read_run(folder).records
    model = recipe.model.load(folder / MODEL)
    return Result(folder, records, model, missed_gates(recipe, records))
