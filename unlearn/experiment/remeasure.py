"""Measures what is there: a finished run with other evaluators, or any model folder beside a target. Nothing trains."""

import csv
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn.config.compatibility import check_capabilities, check_subjects
from unlearn.config.compose import named_entries
from unlearn.config.recipe import load
from unlearn.config.schema import Recipe
from unlearn.core.boundary import reading
from unlearn.core.distributed import barrier, launch, rank
from unlearn.core.errors import RecipeError
from unlearn.core.files import models_cache
from unlearn.data.base import Dataset
from unlearn.data.loading import load_data
from unlearn.evaluators.base import EvaluationResult, RunFacts
from unlearn.experiment.inputs import gather_inputs, rehearse
from unlearn.experiment.measuring import measure
from unlearn.experiment.model_store import find, given
from unlearn.experiment.outcome import Outcome, read_outcome, refuse_changed
from unlearn.experiment.output_folder import new_folder
from unlearn.experiment.part_summary import write_summary
from unlearn.experiment.parts import parts_of, single_runs
from unlearn.experiment.run_dir import RunDir, header
from unlearn.experiment.runner import Result, missed_gates
from unlearn.report.card import write_model_card
from unlearn.report.page import build_report
from unlearn.report.read_run import RunFolder, read_run
from unlearn.report.table import metrics_table
from unlearn.training.fit import check_machine, quiet_lightning

SUBJECT_KEYS = ("model", "target", "retrained", "teacher", "clean")
"""Settings that name the folder of a subject; ``model`` is the one that is judged, the subject ``unlearned``."""


def remeasure(folder: Path, settings: Sequence[str]) -> Result:
    """Measure a run whose steps have ended, and add the figures to its own; its report is made anew.

    Args:
        folder: run directory, of a single run or of several parts; of one part, their summary is made anew as well.
        settings: ``key=value`` of ``evaluate`` and ``gate``. The entries of ``evaluate`` that they name are measured;
            all of the recipe's if they name none.

    Raises:
        RecipeError: the folder holds no such run, or a setting is wrong; nothing is written then.
        EvaluationFailed, GateFailed: see ``unlearn.experiment.runner.run``.
    """
    run_dir = RunDir(folder)
    status = run_dir.status()
    if not status:
        raise RecipeError(f"{folder} holds no run (it has no run.json). Give a run directory, or model=FOLDER.")
    if "judged model" in status.get("works_on", {}):
        raise RecipeError(
            f"{folder} measures a model folder, not a run. Type its command again with other evaluators and another "
            f"output: {shlex.join(status['command'])}"
        )
    if status["in_memory"]:
        raise RecipeError(
            f"{folder} began from a model in memory, which is not stored. Save that target and type: "
            f"python -m unlearn.evaluate model={folder}/model target=FOLDER recipe={folder}/recipe.yaml output=FOLDER"
        )
    before, recipe = run_dir.recipe(), run_dir.recipe(settings)
    measured = _entries(before, recipe, settings)
    for part in single_runs(recipe, folder):
        RunDir(part).status()
        refuse_changed(part, folder)
    around = _summarised(folder, status)
    result = _remeasured(recipe, folder, None, measured, _ready(recipe))
    while around is not None:
        _summarise_anew(around)
        around = _summarised(around.path, RunDir(around.path).status())
    return result.checked()


def _remeasured(recipe: Recipe, folder: Path, whole: Path | None, entries: set[str], dataset: Dataset) -> Result:
    """Measure a single run, or all parts of a run and then their summary."""
    run_dir, parts = RunDir(folder, whole), parts_of(recipe)
    if not parts:
        return _one_run(recipe, entries, dataset, run_dir)
    results = [_remeasured(part, folder / name, whole or folder, entries, dataset) for name, part in parts.items()]
    with run_dir.held():
        run_dir.begin(recipe, run_dir.status()["command"], in_memory=False)
        return Result.over_parts(run_dir, recipe, results)


def measure_folders(folders: Mapping[str, str], recipe: str, settings: Sequence[str], command: Sequence[str]) -> Result:
    """Measure a model folder beside a target with a recipe's data and evaluators, into a run directory of its own.

    Args:
        folders: by ``SUBJECT_KEYS``: ``model`` and ``target``, and others where evaluators compare with them.
        recipe: name or file; what it says of unlearning is not used.
        settings: ``key=value`` laid over the recipe.
        command: kept in the run directory.

    Raises:
        RecipeError: a folder or a setting is wrong; nothing is written then.
        EvaluationFailed, GateFailed: see ``unlearn.experiment.runner.run``.
    """
    for name in ("model", "target"):
        if name not in folders:
            raise RecipeError(f"there is no {name}; write {name}=FOLDER.")
    about = {"model.pretrained": folders["target"], "model.retrained": folders.get("retrained")}
    own = [f"{key}={json.dumps(value).replace('${', '$${')}" for key, value in about.items()]
    read = load(recipe, [*settings, *own, "corrupt=null", "distil=null", "pretrain.retrained=false"])
    if len(read.seeds) > 1:
        raise RecipeError(f"seed is {read.seeds}, and a model folder is measured once; write seed={read.seeds[0]}.")
    if read.requests is not None and read.requests.at is None:
        raise RecipeError("requests are several, and a model folder is measured once; write requests.at=1, say.")
    dataset = _ready(read, folders)
    new_folder(read)  # says now what is wrong with ``output``
    began = time.monotonic()
    inputs = gather_inputs(read, read.seeds[0], None, dataset)
    teacher, clean = (
        given(name, read.model, folders[name]) if name in folders else None for name in ("teacher", "clean")
    )
    judged = given("model", read.model, folders["model"])
    judged.shared().check_fits(dataset.info)
    inputs = replace(inputs, teacher=teacher, clean=clean)
    seconds = {"inputs": time.monotonic() - began}
    left_out = [name for name, evaluator in read.evaluate.items() if evaluator.of_the_run]
    figures = replace(read, evaluate={name: one for name, one in read.evaluate.items() if name not in left_out})
    findings = measure(figures, inputs, Outcome(judged.shared(), RunFacts(), {}), read.seeds[0])
    findings.notes.extend(f"{name}: it reports on a run, and a model folder has none." for name in left_out)
    seconds["evaluation"] = time.monotonic() - began - seconds["inputs"]
    failed = missed_gates(read, findings.records)
    run_dir = RunDir(new_folder(read))
    with run_dir.held():
        run_dir.begin(read, command, in_memory=False)
        run_dir.keep({**inputs.facts, "judged model": judged.key})
        run_dir.write_splits(inputs.splits)
        if rank() == 0:
            about_run = header(read, read.seeds[0], RunFacts(), seconds, failed, findings)
            run_dir.write_findings(findings, {**about_run, "method": "", "judged": folders["model"]})
            build_report(run_dir.folder)
            run_dir.end(metrics_table(findings.records), complete=not findings.failed)
        barrier()
    return Result(run_dir.folder, findings.records, judged.shared(), failed, findings.failures).checked()


def _entries(before: Recipe, after: Recipe, settings: Sequence[str]) -> set[str]:
    """Return the entries of ``evaluate`` to measure: those that settings name or change, or all without settings."""
    if not settings:
        return set(after.evaluate)
    old, new = before.tree["evaluate"], after.tree["evaluate"]
    named = named_entries("evaluate", settings, old)
    return {name for name in after.evaluate if name in named or new[name] != old.get(name)}


def _ready(recipe: Recipe, folders: Mapping[str, str] | None = None) -> Dataset:
    """Check a recipe for measuring, start its ranks and return the data as the model reads them."""
    check_capabilities(recipe, recipe.model.wrapper)
    if folders is None:
        check_subjects(recipe)
    else:
        _check_folders(recipe, folders)
    check_machine(recipe.trainer)
    dataset = recipe.model.data_as_read(load_data(recipe.data))
    rehearse(recipe, dataset)
    quiet_lightning()
    launch(recipe.trainer.devices, recipe.trainer.accelerator)
    return dataset


def _check_folders(recipe: Recipe, folders: Mapping[str, str]) -> None:
    """Refuse evaluators that compare with a model of which no folder is given."""
    for name, evaluator in recipe.evaluate.items():
        if lacking := [subject for subject in evaluator.subjects if subject not in (*folders, "unlearned")]:
            raise RecipeError(
                f"evaluate.{name} compares with the {lacking[0]} model. Type {lacking[0]}=PATH or evaluate.{name}=null."
            )


def _summarised(folder: Path, status: Mapping[str, Any]) -> RunFolder | None:
    """Return the run of several parts whose summary holds the figures of this one, None where there is none."""
    around = folder.absolute().parent  # not the path in its status, as a run may have been moved
    if not status.get("parent") or not (around / "metrics.json").is_file():
        return None
    whole = read_run(around)
    return whole if folder.absolute().name in {part.path.name for part in whole.parts} else None


def _summarise_anew(run: RunFolder) -> None:
    """Write the summary of a run of several parts, one of which was measured again."""
    run_dir = RunDir(run.path)
    with run_dir.held():
        if rank() == 0:
            records = write_summary(run.path, [part.path for part in run.parts], run.over)
            ended = [RunDir(part.path).status()["status"] == "done" for part in run.parts]
            run_dir.end(metrics_table(records), complete=all(ended))
        barrier()


def _one_run(recipe: Recipe, entries: set[str], dataset: Dataset, run_dir: RunDir) -> Result:
    """Measure some entries of a single run and write them among its own."""
    seed, began = recipe.seeds[0], time.monotonic()
    _refuse_to_train(recipe, run_dir)
    inputs = gather_inputs(recipe, seed, None, dataset)
    with run_dir.held():
        run_dir.keep(inputs.facts)
        outcome = read_outcome(recipe, inputs, run_dir.folder, seed)
        if outcome is None:  # gone since it was looked for
            raise RecipeError(f"{run_dir.folder} holds no outcome of its steps.")
        old, items = read_run(run_dir.folder), _items(run_dir.folder / "items.csv")  # a broken one is refused at once
        some = {name: evaluator for name, evaluator in recipe.evaluate.items() if name in entries}
        found = measure(replace(recipe, evaluate=some), inputs, outcome, seed)
        findings = _joined(recipe, old, items, found, entries)
        failed = missed_gates(recipe, findings.records)
        run_dir.begin(recipe, [], in_memory=False)
        if rank() == 0:
            seconds = {**old.fact("seconds")}
            seconds["evaluation"] = seconds.get("evaluation", 0.0) + time.monotonic() - began
            facts = {"failed_gates": failed, "failed_evaluators": sorted(findings.failed), "seconds": seconds}
            run_dir.write_findings(findings, {**old.facts, **facts})
            write_model_card(run_dir.folder)
            build_report(run_dir.folder)
            run_dir.end(metrics_table(findings.records), complete=not findings.failed)
        barrier()
    return Result(run_dir.folder, findings.records, outcome.model, failed, findings.failures)


def _refuse_to_train(recipe: Recipe, run_dir: RunDir) -> None:
    """Refuse a run whose target or retrained model would have to be trained again."""
    if recipe.model.pretrained is not None:
        return
    keys = run_dir.status().get("works_on", {})
    for name in ("target model", "retrained model"):
        if name in keys and find(recipe.model, keys[name]) is None:
            raise RecipeError(
                f"The {name} of {run_dir.folder} ({keys[name]}) neither ships nor is in {models_cache()}; nothing is "
                f"trained here. Type: python -m unlearn.run recipe={run_dir.folder}/recipe.yaml output=FOLDER"
            )


def _items(path: Path) -> list[dict[str, str]]:
    """Return the item-level values that a run has so far."""
    if not path.is_file():
        return []
    usual = csv.field_size_limit(2**31 - 1)  # a text may be longer than what the reader takes at first
    try:
        with reading(path, "Delete the file."), path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    finally:
        csv.field_size_limit(usual)  # it holds for the whole process


def _joined(
    recipe: Recipe, run: RunFolder, rows: Sequence[dict[str, str]], found: EvaluationResult, entries: set[str]
) -> EvaluationResult:
    """Return a run's findings with those of some entries replaced, in the recipe's order; dropped entries are gone."""
    kept = set(recipe.evaluate) - entries
    order = {name: place for place, name in enumerate(recipe.evaluate)}
    rows = [row for row in rows if row.get("evaluator") in kept]
    failed = {name: "" for name in run.facts.get("failed_evaluators", ()) if name in kept}
    return EvaluationResult(
        sorted([*(r for r in run.records if r.evaluator in kept), *found.records], key=lambda r: order[r.evaluator]),
        sorted([*(p for p in run.pictures if p.evaluator in kept), *found.pictures], key=lambda p: order[p.evaluator]),
        sorted([*rows, *found.items], key=lambda row: order[row["evaluator"]]),
        sorted(
            [*(t for t in run.text_tables if t.evaluator in kept), *found.text_tables], key=lambda t: order[t.evaluator]
        ),
        [*(note for note in run.notes if any(note.startswith(f"{key}: ") for key in kept)), *found.notes],
        {**failed, **found.failed},
    )
