"""Runs a module's steps: devices, precision, loggers, checkpoints, resume."""

from __future__ import annotations

import hashlib
import logging
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from unlearn.config.schema import Trainer
from unlearn.core.distributed import gather_objects, rank, world_size
from unlearn.core.errors import Interrupted, RecipeError, UnlearnError
from unlearn.core.reference_cache import ReferenceCache
from unlearn.training.callbacks import Bar, Checkpoints, CleanStop, Curves
from unlearn.training.dataloader import StepLoader
from unlearn.training.module import UnlearningModule

Prepare = Callable[[UnlearningModule, StepLoader], None]


class PlainRanks(DDPStrategy):
    """Several ranks without PyTorch's DDP wrapper: gradients are reduced in training.gradients, before surgery."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def fit(
    module: UnlearningModule,
    trainer: Trainer,
    folder: Path,
    title: str,
    prepare: Prepare | None = None,
    beside: Sequence[lightning.Callback] = (),
) -> float:
    """Run the module's primary steps to their end, from the last checkpoint in ``folder`` where there is one.

    Args:
        module: what steps.
        trainer: where and how.
        folder: where ``checkpoints/`` and ``metrics.csv`` go.
        title: for the progress bar.
        prepare: called with (module, feed) once the module stands on its device, before the first step.
        beside: what else happens after each step, before the checkpoint.

    Returns:
        Seconds spent in all, those before a resume included.

    Raises:
        Interrupted: the user stopped the run; the state is saved.
        Diverged: a gradient is not finite; the last good state is saved.
    """
    quiet_lightning()
    optim = module.primary.optim
    began = time.monotonic()
    before = [0.0]
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(
        folder / "checkpoints", trainer.checkpoint_every, lambda: before[0] + time.monotonic() - began
    )
    state = checkpoints.load()
    first = module.step_count
    if state is not None:
        before[0], first = float(state["seconds"]), int(state["step"])
        module.restored = state
    sizes = {group: optim.batch for phase in module.phases for group in phase.groups}
    if optim.forget_batch is not None and "forget" in sizes:
        sizes["forget"] = optim.forget_batch
    module.reference_cache = ReferenceCache(folder / "reference")
    feed = StepLoader(module.splits, sizes, module.stream.child("order"), optim.accumulate)
    callbacks: list[lightning.Callback] = [*beside, Curves(folder / "metrics.csv", first), checkpoints, CleanStop()]
    if prepare is not None:
        callbacks.insert(0, _Prepare(prepare, feed))
    if rank() == 0:
        callbacks.append(Bar(title, optim.steps, first))
    runner = lightning.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        strategy=_strategy(trainer),
        precision=_precision(trainer),
        max_epochs=1,
        logger=_loggers(trainer, folder),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if trainer.compile:
        module.model.compile()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if first < optim.steps:
            runner.fit(module, feed.loader(first, optim.steps, trainer.workers))
        else:
            module.load_weights(state or {})
    except SystemExit as stop:  # Lightning turns a second Ctrl-C into an exit
        raise KeyboardInterrupt from stop
    finally:
        _give_back(handlers)  # Lightning leaves its own behind
    if module.stop_asked and module.step_count < optim.steps:
        raise Interrupted(f"Stopped at step {max(0, module.step_count)} of {optim.steps}; the state is saved.")
    module.use_kept()
    _same_on_every_rank(module)
    return before[0] + time.monotonic() - began


def _give_back(handlers: dict[signal.Signals, Any]) -> None:
    """Install signal handlers again; only the main thread may, and in another none were changed."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _same_on_every_rank(module: UnlearningModule) -> None:
    """Refuse a result on which the ranks do not agree bit for bit: they would have drifted apart."""
    if world_size() > 1:
        digest = hashlib.sha256()
        for parameter in module.parameters():
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        if len(set(gather_objects(digest.hexdigest()))) > 1:
            raise UnlearnError("The ranks' weights differ at the end of the run; this is a defect, please report it.")


def device_for(trainer: Trainer) -> torch.device:
    """Return the device that this rank works on."""
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        if trainer.accelerator == "gpu":
            raise RecipeError("trainer.accelerator=gpu, but PyTorch sees no GPU. Type trainer.accelerator=auto.")
        return torch.device("cpu")
    return torch.device("cuda", rank() % torch.cuda.device_count())


def peak_memory() -> int:
    """Return the peak memory of this process so far in bytes: the GPU's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def check_machine(trainer: Trainer) -> None:
    """Refuse, before any work, what this machine or installation lacks."""
    device_for(trainer)
    if trainer.wandb is not None and find_spec("wandb") is None:
        raise RecipeError("trainer.wandb is set, but wandb is not installed. Type: pip install wandb")


def quiet_lightning() -> None:
    """Keep Lightning's own notes out of the output; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for note in (
        r".*does not have many workers which may be a bottleneck",
        r".*module\(s\) in eval mode at the start of training",  # on purpose: no dropout, no moving batch statistics
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=note)


class _Prepare(lightning.Callback):
    def __init__(self, prepare: Prepare, feed: StepLoader) -> None:
        self.prepare, self.feed = prepare, feed

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.prepare(module, self.feed)


def _strategy(trainer: Trainer) -> Strategy | Literal["auto"]:
    if world_size() > 1:
        return PlainRanks()
    device = device_for(trainer)
    return SingleDeviceStrategy(device=device) if device.type == "cpu" else "auto"


def _precision(trainer: Trainer) -> Any:
    return "32-true" if trainer.precision == "32" else trainer.precision


def _loggers(trainer: Trainer, folder: Path) -> list[Logger]:
    loggers: list[Logger] = []
    wanted = trainer.tensorboard
    if wanted or (wanted is None and find_spec("tensorboard") is not None):
        loggers.append(TensorBoardLogger(save_dir=str(folder), name="tensorboard", version=""))
    if trainer.wandb is not None:
        loggers.append(WandbLogger(project=trainer.wandb, save_dir=str(folder)))
    return loggers
