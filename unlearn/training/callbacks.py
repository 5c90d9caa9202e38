"""Callbacks of every run: checkpoints, training curves, progress, a clean stop."""

import csv
import io
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typing_extensions import override

from unlearn.core.boundary import reading
from unlearn.core.distributed import rank, sum_over_ranks
from unlearn.core.errors import Diverged
from unlearn.core.files import write_text
from unlearn.core.shown import one_line
from unlearn.training.checkpoint import load_checkpoint, restoring, save_checkpoint
from unlearn.training.module import UnlearningModule


class Checkpoints(Callback):
    """Writes ``last.ckpt`` every few steps and at the end, atomically: after a kill the previous one is intact.

    It holds the module's state, the ``state_dict`` of every callback, and the seconds spent.

    Args:
        folder: folder of the file; created if missing.
        every: steps between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / "last.ckpt", every
        self.before, self.began = 0.0, time.monotonic()

    def seconds(self) -> float:
        """Return the seconds spent so far, including those before a resume."""
        return self.before + time.monotonic() - self.began

    def resume(self, module: UnlearningModule, callbacks: Sequence[Callback]) -> dict[str, Any] | None:
        """Restore the module and the callbacks from the checkpoint and return it; None if there is none."""
        if not self.path.is_file():
            return None
        state = load_checkpoint(self.path)
        with restoring(self.path):
            self.before = float(state["seconds"])
            step, steps = state["step"], module.primary.optim.steps
            if not isinstance(step, int) or not module.step_count <= step <= steps:
                raise ValueError(f"it is of step {step!r:.40}, and the recipe takes {steps}")
            module.resume_from(state)
            for callback in callbacks:
                if callback.state_key in state["callbacks"]:
                    callback.load_state_dict(state["callbacks"][callback.state_key])
        return state

    @override
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.step_count % self.every == 0:
            self.save(trainer, module)

    @override
    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.save(trainer, module)

    @override
    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        weights = module.primary.parameters.values()
        if isinstance(exception, Diverged) and all(bool(weight.isfinite().all()) for weight in weights):
            self.save(trainer, module)  # the state before the step that was not taken

    def save(self, trainer: Trainer, module: UnlearningModule) -> None:
        """Write the state, on rank 0 only: all ranks hold the same."""
        if rank() == 0:
            self.path.parent.mkdir(exist_ok=True)  # not its parent: a deleted run stays deleted
            states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
            kept = {key: state for key, state in states.items() if state}
            save_checkpoint(self.path, {**module.snapshot(), "callbacks": kept, "seconds": self.seconds()})


class Curves(Callback):
    """Appends a row of losses and diagnostics to ``metrics.csv`` and to the other loggers.

    Args:
        path: the CSV file. A resumed run drops the rows from its first step on, so that no row is repeated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.columns: dict[str, None] = {}
        self.started = False

    @override
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if self.path.is_file() and rank() == 0:
            with reading(self.path, "Delete the file."), self.path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if str(row.get("step")).isdecimal() and None not in row]
            self.rows = [row for row in rows if int(row["step"]) < module.step_count]
        self.columns = dict.fromkeys(key for row in self.rows for key in row)

    @override
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
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
    """Shows one progress bar on rank 0, or prints plain lines if there is no terminal.

    Args:
        title: label of the bar.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.live = sys.stderr.isatty()
        self.shown = time.monotonic()

    @override
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        title, figures = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[figures]}"))
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(title, BarColumn(), MofNCompleteColumn(), *times, figures, disable=not self.live)
        steps, done = module.primary.optim.steps, max(0, module.step_count)
        self.task = self.progress.add_task(self.title, total=steps, completed=done, figures="")
        self.progress.start()

    @override
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        figures = "  ".join(
            f"{key.removeprefix('loss/')} {value:.3g}"
            for key, value in module.row.items()
            if key.startswith("loss/") or key == "cosine"
        )
        figures = one_line(figures)  # with the names of terms, which a recipe gives
        self.progress.update(self.task, completed=max(0, module.step_count))
        if figures:
            self.progress.update(self.task, figures=figures)
        if not self.live and figures and time.monotonic() - self.shown > 10:  # a line every ten seconds
            self.shown = time.monotonic()
            step = module.step_count
            where = f"step {step}/{module.primary.optim.steps}" if step > 0 else f"warming up, {-step} to go"
            print(f"{self.title}: {where}  {figures}", file=sys.stderr, flush=True)

    @override
    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.progress.stop()

    @override
    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        if hasattr(self, "progress"):  # closed before the error is shown
            self.progress.stop()


class CleanStop(Callback):
    """The first Ctrl-C or SIGTERM ends the run after the current step; a second one ends it at once.

    ``unlearn.training.fit`` puts the former signal handlers back.

    Attributes:
        asked: whether the user asked to stop; after each step it is the same on every rank.
    """

    def __init__(self) -> None:
        self.asked = False

    @override
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Catch the signals after Lightning's own handlers; Python allows it in the main thread only."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, ask)

    @override
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # a signal reaches one rank before another, and all must end after the same step
        if sum_over_ranks(torch.tensor(float(self.asked), device=module.device)) > 0:
            self.asked = trainer.should_stop = True
