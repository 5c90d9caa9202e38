"""Runs a module's steps: devices, precision, loggers, checkpoints, resume."""

import hashlib
import logging
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import lightning
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch.utils.data import DataLoader
from typing_extensions import override

from unlearn.config.schema import Trainer
from unlearn.core.distributed import gather_objects, rank, world_size
from unlearn.core.errors import Interrupted, RecipeError, UnlearnError
from unlearn.training.callbacks import Bar, Checkpoints, CleanStop, Curves
from unlearn.training.dataloader import StepBatches, StepLoader
from unlearn.training.module import UnlearningModule


class PlainRanks(DDPStrategy):
    """Several ranks without PyTorch's DDP wrapper: gradients are reduced in training.gradients, before surgery."""

    @override
    def configure_ddp(self) -> None:
        pass  # the module stays as it is


def fit(
    module: UnlearningModule,
    trainer: Trainer,
    folder: Path,
    title: str,
    callbacks: Sequence[lightning.Callback] = (),
) -> float:
    """Run the module's primary steps to their end, from the last checkpoint in ``folder`` if there is one.

    Args:
        module: the module to train.
        trainer: devices, precision and loggers.
        folder: where ``checkpoints/`` and ``metrics.csv`` go.
        title: of the progress bar.
        callbacks: called before the checkpoint is written, which holds their ``state_dict``.

    Returns:
        Total seconds, including those before a resume.

    Raises:
        Interrupted: the user stopped the run; the state is saved.
        Diverged: a gradient is not finite; the last good state is saved.
    """
    quiet_lightning()
    folder.mkdir(parents=True, exist_ok=True)
    module.cache_reference_in(folder / "reference")
    checkpoints, stop = Checkpoints(folder / "checkpoints", trainer.checkpoint_every), CleanStop()
    callbacks = [*callbacks, Curves(folder / "metrics.csv"), checkpoints, stop]
    state = checkpoints.resume(module, callbacks)
    if rank() == 0:
        callbacks.append(Bar(title))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if trainer.compile:
        module.model.compile()
    steps = module.primary.optim.steps
    if module.step_count < steps:
        runner = _runner(trainer, folder, callbacks)
        with _signals_kept():
            runner.fit(module, _loader(module, trainer.workers))
        if module.step_count < steps and module.goal is None and not runner.should_stop:
            raise UnlearnError(
                f"The steps ended after {max(0, module.step_count)} of {steps}: a component or the data raised "
                "StopIteration, which ends a loop without a word (an iterator ran out). Let it raise another error."
            )
    else:
        module.load_weights(state or {})
    if stop.asked and module.step_count < steps:
        raise Interrupted(f"Stopped at step {max(0, module.step_count)} of {steps}; the state is saved.")
    module.average.apply()
    _same_on_every_rank(module)
    return checkpoints.seconds()


def _loader(module: UnlearningModule, workers: int) -> DataLoader[StepBatches]:
    """Return the batches of the remaining steps."""
    optim = module.primary.optim
    sizes = {group: optim.batch for phase in module.phases for group in phase.groups}
    if optim.forget_batch is not None and "forget" in sizes:
        sizes["forget"] = optim.forget_batch
    batches = StepLoader(module.common.splits, sizes, module.common.randomness.child("order"), optim.accumulate)
    return batches.loader(module.step_count, optim.steps, workers)


def _runner(trainer: Trainer, folder: Path, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    """Return Lightning's Trainer, without its own checkpoints, progress bar and sampler: this package has others."""
    return lightning.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        strategy=_strategy(trainer),
        precision="32-true" if trainer.precision == "32" else trainer.precision,
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


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the caller's signal handlers back afterwards; Lightning leaves its own behind, and exits on Ctrl-C."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns a second Ctrl-C into an exit
            raise KeyboardInterrupt from stop
        raise
    finally:
        if threading.current_thread() is threading.main_thread():  # in another thread none were changed
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _same_on_every_rank(module: UnlearningModule) -> None:
    """Raise an UnlearnError unless the ranks' weights are equal bit for bit."""
    if world_size() > 1:
        digest = hashlib.sha256()
        for parameter in module.parameters():
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        if len(set(gather_objects(digest.hexdigest()))) > 1:
            raise UnlearnError("The ranks' weights differ at the end of the run; this is a defect, please report it.")


def device_for(trainer: Trainer) -> torch.device:
    """Return this rank's device."""
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        if trainer.accelerator == "gpu":
            raise RecipeError("trainer.accelerator=gpu, but PyTorch sees no GPU. Type trainer.accelerator=auto.")
        return torch.device("cpu")
    return torch.device("cuda", rank() % torch.cuda.device_count())


def peak_memory() -> int:
    """Return the peak memory of this process so far in bytes: the GPU's if there is one, else resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def check_machine(trainer: Trainer) -> None:
    """Raise a RecipeError, before any work, if this machine or installation lacks something."""
    device_for(trainer)
    if trainer.wandb is not None and find_spec("wandb") is None:
        raise RecipeError("trainer.wandb is set, but wandb is not installed. Type: pip install wandb")


def quiet_lightning() -> None:
    """Silence Lightning's notes and warnings; errors are still shown."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for note in (
        r".*does not have many workers which may be a bottleneck",
        r".*module\(s\) in eval mode at the start of training",  # on purpose: no dropout, no moving batch statistics
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=note)


def _strategy(trainer: Trainer) -> Strategy | Literal["auto"]:
    if world_size() > 1:
        return PlainRanks()
    device = device_for(trainer)
    return SingleDeviceStrategy(device=device) if device.type == "cpu" else "auto"


def _loggers(trainer: Trainer, folder: Path) -> list[Logger]:
    loggers: list[Logger] = []
    wanted = trainer.tensorboard
    if wanted or (wanted is None and find_spec("tensorboard") is not None):
        loggers.append(TensorBoardLogger(save_dir=str(folder), name="tensorboard", version=""))
    if trainer.wandb is not None:
        loggers.append(WandbLogger(project=trainer.wandb, save_dir=str(folder)))
    return loggers
