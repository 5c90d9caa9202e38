"""The run directory: its files, its lock and its status."""

import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from unlearn.config.arguments import split
from unlearn.config.recipe import load
from unlearn.config.schema import Recipe
from unlearn.config.yaml_io import dump
from unlearn.core.boundary import components, described, reading
from unlearn.core.commands import resume_command
from unlearn.core.distributed import barrier, rank
from unlearn.core.errors import GateFailed, Interrupted, RecipeError, UnlearnError, is_of_the_machine
from unlearn.core.files import write_bytes, write_json, write_text
from unlearn.core.shown import csv_text, file_name, printable
from unlearn.data.base import Split
from unlearn.evaluators.base import EvaluationResult, RunFacts
from unlearn.experiment.environment import environment
from unlearn.report.read_run import read_run

MEASURING = ("evaluate", "gate")
"""Parts of a recipe that may change once a run has begun."""


STATUS: dict[str, type | tuple[type, ...]] = {
    "status": str, "recipe": str, "hash": str, "command": list, "started": (int, float), "in_memory": bool,
}  # fmt: skip
"""Entries that every ``run.json`` has, with their types."""
FILES = (
    ".lock", "command.txt", "environment.json", "items.csv", "log.txt", "metrics.csv", "metrics.json", "recipe.yaml",
    "report.html", "run.json", "splits.json",
)  # fmt: skip
FOLDERS = ("checkpoints", "model", "samples")
"""What a run writes in its folder."""
MOVE_AWAY = "Move it away, or give another run."
DELETED = "was deleted while the run worked in it, so nothing of it is left. Start it again."


class RunDir:
    """One run directory.

    Args:
        folder: where it is.
        parent: the folder of the run over several seeds that this one belongs to.
    """

    def __init__(self, folder: Path, parent: Path | None = None) -> None:
        self.folder, self.parent = folder, parent
        self._had_status = False

    def status(self) -> dict[str, Any]:
        """Return ``run.json``, empty where there is none.

        Raises:
            RecipeError: it is broken, or a name of what a run writes is taken by something of another kind.
        """
        path = self.folder / "run.json"
        folders = [self.folder, *(self.folder / name for name in FOLDERS)]
        taken = [f"{one} is no folder" for one in folders if os.path.lexists(one) and not one.is_dir()]
        taken += [f"{self.folder / name} is a folder" for name in FILES if (self.folder / name).is_dir()]
        if taken:
            raise RecipeError(f"{taken[0]}, so no run can be read or written there. {MOVE_AWAY}")
        if not path.is_file():
            return {}
        self._had_status = True
        with reading(path, "Delete the folder, or resume another run."):
            status = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(status, dict) or not _has_types(status):
            raise RecipeError(
                f"{path} is broken (it lacks entries, or one is of another kind). Delete the folder, or resume "
                "another run."
            )
        return status

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder while the body runs, and clean up after an error.

        A run that ends by a RecipeError before its first checkpoint leaves nothing of its own. After any other error it
        is marked as failed, so that ``resume=auto`` passes over it.

        Raises:
            RecipeError: another process works in the folder.
        """
        fresh = not self.status()
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        found = set(self.folder.iterdir()) if self.folder.is_dir() else set()
        lock = FileLock(self.folder / ".lock")
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RecipeError(f"{self.folder} is in use by another process; wait for it.") from None
        try:
            with components():
                yield
        except (Interrupted, GateFailed, KeyboardInterrupt):
            raise
        except Exception as error:
            if (meant := self._meant(error)) is not None:
                raise meant from error
            refused = isinstance(error, RecipeError)
            if rank() == 0 and refused and fresh and not any(self.folder.rglob("last.ckpt")):
                for path in set(self.folder.iterdir()) - found:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                with suppress(OSError):  # another run may have come into runs/ meanwhile
                    for path in made:
                        path.rmdir()
            elif rank() == 0 and (fresh or not refused) and self.status():
                write_json(self.folder / "run.json", {**self.status(), "status": "failed"})
            raise
        finally:
            lock.release()

    def _meant(self, error: Exception) -> UnlearnError | None:
        """Return what an error of the folder or the machine means for the run, in one sentence; None for others."""
        if is_of_the_machine(error):
            return UnlearnError(f"{described(error)}. {self._saved()}")
        if isinstance(error, OSError) and self._had_status and not (self.folder / "run.json").is_file():
            return UnlearnError(f"{self.folder} {DELETED}")
        if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError):
            path = Path(error.filename2 or error.filename or "")
            if path.is_relative_to(self.folder):
                kind = "a folder" if path.is_dir() else "no folder"
                return RecipeError(f"{path} is {kind}, and the run writes something else there. {MOVE_AWAY}")
        return None

    def _saved(self) -> str:
        """Return in words what of the run is on the disk, and how it goes on."""
        state = self.folder / "checkpoints" / "last.ckpt"
        if self.status().get("status") == "done":
            return (
                f"The finished run in {self.folder} stays. Make room or give access, and type the same command again."
            )
        if (self.folder / "checkpoints" / "outcome.ckpt").is_file():
            saved = f"The unlearned model is saved in {self.folder / 'model'}"
        elif state.is_file():
            saved = f"The state of the last checkpoint is saved in {state}"
        else:
            return f"Nothing of the run in {self.folder} is saved yet. Make room or give access, and start it again."
        return f"{saved}. Make room or give access, and type: {resume_command(self.parent or self.folder)}"

    def is_held(self) -> bool:
        """Whether another process works in the folder."""
        if not (self.folder / ".lock").exists():  # looking would make one
            return False
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def keep(self, facts: Mapping[str, str]) -> None:
        """Record the hashes of data and models; refuse to resume a run that began with others."""
        before = self.status().get("works_on")
        if before is not None:
            if changed := [name for name, value in facts.items() if before.get(name) != value]:
                raise RecipeError(
                    f"{self.folder}: the {' and the '.join(changed)} changed since the run began, so the two halves "
                    "would not belong together. Put it back, or start a new run."
                )
        elif rank() == 0:
            write_json(self.folder / "run.json", {**self.status(), "works_on": dict(facts)})
        barrier()

    def recipe(self, settings: Sequence[str] = ()) -> Recipe:
        """Return the recipe of this run, with other evaluators or gates where ``settings`` name them.

        The file is only read as a recipe once it is known to be the run's own: a recipe names classes to import.

        Raises:
            RecipeError: ``recipe.yaml`` is missing or was changed, or a setting would change more than the measuring.
        """
        path = self.folder / "recipe.yaml"
        if not path.is_file():
            raise RecipeError(f"{self.folder} lacks its recipe.yaml, so it cannot go on. Start the recipe anew.")
        if _digest(path.read_bytes()) not in (self.status().get("recipe_files") or ()):
            raise RecipeError(
                f"{path} was changed since the run began, so the two halves would not belong together. "
                f"Put it back, or start a new run: python -m unlearn.run recipe={path} output=FOLDER"
            )
        for setting in settings:
            if split(setting)[0].split(".")[0] not in MEASURING:
                raise RecipeError(
                    f"{setting}: a run keeps its recipe but for {' and '.join(MEASURING)}. For another one type: "
                    f"python -m unlearn.run recipe={path} output=FOLDER {setting}"
                )
        return load(path, settings)

    def has(self, recipe: Recipe) -> bool:
        """Return whether ``recipe.yaml`` is this recipe, its evaluators and gates included."""
        return self.status().get("current_hash") == recipe.hash

    def begin(self, recipe: Recipe, command: Sequence[str], in_memory: bool) -> None:
        """Write what is known before the first step; of a resumed run, the recipe where it measures other things."""
        status = self.status()
        if (fresh := not status) and rank() == 0:
            write_text(self.folder / "command.txt", f"{shlex.join(command)}\n")
            write_json(self.folder / "environment.json", environment())
            status = {"status": "running", "recipe": recipe.name, "hash": recipe.hash, "command": list(command)}
            status |= {"started": time.time(), "parent": str(self.parent) if self.parent else None}
            status["in_memory"] = in_memory
        if rank() == 0 and not self.has(recipe):
            text = dump(recipe.tree, recipe.origins)
            # the old file stays known, so that a kill between the two writes leaves a run that can be resumed
            files = [*status.get("recipe_files", [])[-1:], _digest(text.encode())]
            status |= {"current_hash": recipe.hash, "recipe_files": files}
            if not fresh:
                write_json(self.folder / "run.json", status)
            write_text(self.folder / "recipe.yaml", text)
            if fresh:  # the last file, as a folder with it holds a run
                write_json(self.folder / "run.json", status)
        barrier()

    def say(self, text: str) -> None:
        """Print a text on rank 0 and keep it in ``log.txt``; further lines are indented, as the first has the time."""
        if rank() == 0:
            shown = printable(text)
            Console(stderr=True, highlight=False, soft_wrap=True).print(shown, markup=False)
            self.log(f"{time.strftime('%H:%M:%S')} " + shown.replace("\n", "\n  "))

    def log(self, text: str) -> None:
        """Keep a text in ``log.txt`` alone."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{printable(text).rstrip()}\n")

    def write_splits(self, splits: Mapping[str, Split]) -> None:
        """Write which items are in which split, by id."""
        if rank() == 0:
            write_json(self.folder / "splits.json", {name: split.ids.tolist() for name, split in splits.items()})

    def write_findings(self, findings: EvaluationResult, header: dict[str, Any]) -> None:
        """Write records, pictures, texts, item-level values and notes; say the notes."""
        samples = self.folder / "samples"
        samples.mkdir(exist_ok=True)
        pictures = {f"{file_name(picture.name)}.png": picture for picture in findings.pictures}
        tables = {f"{file_name(table.name)}.json": table for table in findings.text_tables}
        before = self._shown()
        for name, picture in pictures.items():
            write_bytes(samples / name, picture.png)
        for name, table in tables.items():
            write_json(samples / name, asdict(table))
        shown = {
            "pictures": [
                {"name": file_name(p.name), "title": p.title, "caption": p.caption, "evaluator": p.evaluator}
                for p in findings.pictures
            ],
            "text_tables": [file_name(table.name) for table in findings.text_tables],
            "notes": findings.notes,
        }
        records = [record.to_dict() for record in findings.records]
        write_json(self.folder / "metrics.json", {"schema": 1, **header, "records": records, **shown})
        for name in before - pictures.keys() - tables.keys():  # of entries that were dropped
            (samples / name).unlink(missing_ok=True)
        (self.folder / "items.csv").unlink(missing_ok=True)
        if findings.items:
            columns = list(dict.fromkeys(key for row in findings.items for key in row))
            rows = [[row.get(column, "") for column in columns] for row in findings.items]
            write_text(self.folder / "items.csv", csv_text(columns, rows))
        for note in findings.notes:
            self.say(note)
        for trace in findings.failed.values():
            self.log(trace)

    def _shown(self) -> set[str]:
        """Return the files in ``samples/`` that the figures of before name; none where they cannot be read."""
        found: set[str] = set()
        with suppress(RecipeError):
            facts = read_run(self.folder).facts
            found |= {f"{file_name(str(picture['name']))}.png" for picture in facts.get("pictures") or ()}
            found |= {f"{file_name(name)}.json" for name in facts.get("text_tables") or ()}
        return found

    def end(self, table: Table, complete: bool = True) -> None:
        """Print the figures and mark the run as finished, or as failed; nothing is written after that."""
        Console(stderr=True).print(table)
        self.say(f"report: {self.folder / 'report.html'}")
        write_json(self.folder / "run.json", {**self.status(), "status": "done" if complete else "failed"})


def _has_types(status: Mapping[str, Any]) -> bool:
    """Return whether the entries of a ``run.json`` are there and of their types."""
    texts = [status.get("command"), status.get("recipe_files") or []]
    works_on = status.get("works_on") or {}
    return (
        all(isinstance(status.get(key), kind) for key, kind in STATUS.items())
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in texts)
        and isinstance(works_on, dict)
        and all(isinstance(value, str) for value in works_on.values())
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def header(
    recipe: Recipe,
    seed: int,
    run: RunFacts,
    seconds: dict[str, float],
    failed: list[str],
    findings: EvaluationResult,
) -> dict[str, Any]:
    """Return the entries of ``metrics.json`` other than records and samples."""
    return {
        "recipe": recipe.name,
        "title": recipe.about.title,
        "method": recipe.about.method,
        "family": recipe.model.wrapper.family,
        "hash": recipe.hash,
        "seed": seed,
        "status": "done",
        "failed_gates": failed,
        "failed_evaluators": sorted(findings.failed),
        "packages": environment()["packages"],
        "device": environment()["device"],
        "seconds": seconds,
        "steps": run.steps,
        "state": plain(run.state),
    }


def plain(content: Any) -> Any:
    """Return a state with tensors as lists (of at most 64 numbers), for JSON."""
    if isinstance(content, torch.Tensor):
        return content.tolist() if content.numel() <= 64 else f"tensor of shape {tuple(content.shape)}"
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content
