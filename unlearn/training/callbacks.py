"""What happens beside the steps: checkpoints, curves, progress, a clean stop."""

from __future__ import annotations

import csv
import io
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unlearn.core.distributed import rank
from unlearn.core.errors import Diverged
from unlearn.core.files import write_text
from unlearn.training.checkpoint import load_checkpoint, save_checkpoint
from unlearn.training.module import UnlearningModule


class Checkpoints(Callback):
    """Write ``last.ckpt`` every few steps and when the run is stopped; the former stays until the new one is whole.

    Args:
        folder: where it is written; made when it is missing.
        every: steps between checkpoints.
        seconds: returns the seconds spent so far, kept for a resumed run.
    """

    def __init__(self, folder: Path, every: int, seconds: Callable[[], float]) -> None:
        self.path, self.every, self.seconds = folder / "last.ckpt", every, seconds

    def load(self) -> dict[str, Any] | None:
        """Return the last state, or None where there is none."""
        return load_checkpoint(self.path) if self.path.is_file() else None

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when a save is due."""
        if module.step_count % self.every == 0:
            self.save(module)

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        """Save the last state, also after a stop."""
        self.save(module)

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        """Save the state before a step that was not taken, where it is sound."""
        weights = module.primary.parameters.values()
        if isinstance(exception, Diverged) and all(bool(weight.isfinite().all()) for weight in weights):
            self.save(module)

    def save(self, module: UnlearningModule) -> None:
        """Write the state; only rank 0 writes, as every rank holds the same."""
        if rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(self.path, {**module.snapshot(), "seconds": self.seconds()})


class Curves(Callback):
    """Append a row of losses and diagnostics to ``metrics.csv`` and to the other loggers.

    Args:
        path: the CSV file. Rows from ``first_step`` on are dropped, so that a resumed run leaves no repeats.
        first_step: step at which this fit starts.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path, self.first_step = path, first_step
        self.rows: list[dict[str, Any]] = []
        if path.is_file() and rank() == 0:
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) < first_step]
        self.columns: dict[str, None] = dict.fromkeys(key for row in self.rows for key in row)
        self.started = False

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the row of a measured step."""
        if not module.row or rank() != 0:
            return
        row = {"step": module.step_count - 1, **module.row}
        for logger in trainer.loggers if row["step"] >= 0 else ():
            logger.log_metrics(module.row, step=row["step"])
        self.rows.append(row)
        if self.started and row.keys() <= self.columns.keys():
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, list(self.columns), restval="").writerow(row)
        else:  # a new column: write the file again
            self.columns |= dict.fromkeys(row)
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self.columns), restval="")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, text.getvalue())
            self.started = True


class Bar(Callback):
    """One progress bar on rank 0; plain lines when there is no terminal.

    Args:
        title: what is being done.
        steps: number of steps.
        first_step: step at which this fit starts.
    """

    def __init__(self, title: str, steps: int, first_step: int) -> None:
        self.title, self.steps, self.first_step = title, steps, first_step
        self.live = sys.stderr.isatty()
        self.shown = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Open the bar."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(
            *columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), disable=not self.live
        )
        self.task = self.progress.add_task(self.title, total=self.steps, completed=max(0, self.first_step), figures="")
        self.progress.start()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar, or print a line every ten seconds."""
        figures = "  ".join(
            f"{key.removeprefix('loss/')} {value:.3g}"
            for key, value in module.row.items()
            if key.startswith("loss/") or key == "cosine"
        )
        self.progress.update(self.task, completed=max(0, module.step_count))
        if figures:
            self.progress.update(self.task, figures=figures)
        if not self.live and figures and time.monotonic() - self.shown > 10:
            self.shown = time.monotonic()
            step = module.step_count
            where = f"step {step}/{self.steps}" if step > 0 else f"warming up, {-step} to go"
            print(f"{self.title}: {where}  {figures}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        """Close the bar."""
        self.progress.stop()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        """Close the bar before the error is shown."""
        if hasattr(self, "progress"):
            self.progress.stop()


class CleanStop(Callback):
    """The first Ctrl-C or SIGTERM ends the run after the current step; a second one ends it at once.

    ``unlearn.training.fit`` gives the signals back.
    """

    def on_train_start(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        """Catch the signals (in the main thread only, where Python allows it), after Lightning's own handlers."""

        def ask(number: int, frame: FrameType | None) -> None:
            if getattr(module, "stop_asked", False):
                raise KeyboardInterrupt
            module.stop_asked = True  # type: ignore[assignment]

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, ask)
