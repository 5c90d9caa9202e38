"""The target and the retrained model: given by path, shipped, cached, or trained here."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from unlearn.config import registry
from unlearn.config.schema import Pretrain, Recipe, Trainer
from unlearn.core.distributed import barrier, rank
from unlearn.core.errors import RecipeError
from unlearn.core.files import models_cache, write_json
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Dataset, Split
from unlearn.models.base import ModelConfig, Wrapper
from unlearn.models.capabilities import InitialisesFromData
from unlearn.models.likelihood import Moments, bits_per_dim_of
from unlearn.objectives.base import Objective
from unlearn.training.build import distillation, training_module
from unlearn.training.dataloader import StepLoader
from unlearn.training.fit import fit

_trained_here: set[str] = set()
"""Keys trained anew by this process: several seeds share one target, also under ``model.train=true``."""

FORMAT = 1
"""Part of every cache key: raised when a change of the code makes trained models differ."""


@dataclass(frozen=True)
class StoredModel:
    """A model on disk.

    Args:
        folder: what ``from_pretrained`` reads.
        origin: given, shipped, cached or trained.
        seconds: what its training took, None where unknown.
        key: hash of everything that shaped it, or of the files of a given one.
    """

    folder: Path
    origin: str
    seconds: float | None = None
    key: str = ""


def given(key: str, config: ModelConfig, path: str) -> StoredModel:
    """Return the model at a path or hub id that stands under ``key`` in the recipe."""
    try:
        folder = config.fetch(path)
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from error
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        raise RecipeError(f"{key}: {folder} is a run directory. Type {key}={folder / 'model'}")
    config.load(folder)  # says what is wrong with it before any work
    return StoredModel(folder, "given", key=_content(folder))


def folder_of(recipe: Recipe, key: str | None) -> Path:
    """Return the folder of a run's target, which ships, is cached, or was given.

    Args:
        recipe: of the run.
        key: of the target, as the run wrote it down; None where it was in memory.

    Raises:
        RecipeError: it is not there any more, or was never in a folder.
    """
    if key is None:
        raise RecipeError("The run began from a model in memory, which has no folder. Give one: --base FOLDER")
    for folder in (*shipped(), models_cache() / key):
        if _record(folder).get("key") == key:
            return folder
    for path in (recipe.model.pretrained, recipe.distil.pretrained if recipe.distil else None):
        if path is not None and _content(recipe.model.fetch(path)) == key:
            return recipe.model.fetch(path)
    raise RecipeError(
        f"The run's target ({key}) is neither in {models_cache()} nor as it was where the recipe says. "
        "Give its folder: --base FOLDER"
    )


def find_or_train(
    config: ModelConfig,
    pretrain: Pretrain,
    trainer: Trainer,
    split: Split,
    subject: str,
    start: StoredModel | None = None,
    by: Mapping[str, Objective] | None = None,
) -> StoredModel:
    """Return a model trained on ``split``: the shipped copy, the cached one, or a new one.

    Args:
        config: shapes the model; ``config.train`` passes over what ships or is cached.
        pretrain: how it is trained.
        trainer: where it is trained; always in single precision, which every precision of unlearning starts from.
        split: the training items.
        subject: target or retrained, for the progress bar.
        start: the model whose training goes on; by default a new one.
        by: objectives that the model is trained by, with ``start`` as their teacher; by default its own training loss.
    """
    key = training_key(config, pretrain, split, start, by)
    if not config.train or key in _trained_here:
        for folder in (*shipped(), models_cache() / key):
            record = _record(folder)
            if record.get("key") == key:
                return StoredModel(
                    folder, "shipped" if folder.parent != models_cache() else "cached", record["seconds"], key
                )
    return train(config, pretrain, trainer, split, subject, key, start, by)


def training_key(
    config: ModelConfig,
    pretrain: Pretrain,
    split: Split,
    start: StoredModel | None = None,
    by: Mapping[str, Objective] | None = None,
) -> str:
    """Return the hash of everything that shapes a trained model."""
    model = {name: value for name, value in asdict(config).items() if name not in config.not_in_training}
    shape = {
        "format": FORMAT,
        "kind": registry.name_of("model", type(config)),
        "model": model,
        "optim": asdict(pretrain.optim),
        "seed": pretrain.seed,
        "data": split.dataset.content(split.ids),
        "info": split.dataset.info,
        "start": start.key if start else None,
    }
    if by:
        shape["by"] = {name: [registry.name_of("objective", type(term)), asdict(term)] for name, term in by.items()}
    return hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest()[:16]


def train(
    config: ModelConfig,
    pretrain: Pretrain,
    trainer: Trainer,
    split: Split,
    subject: str,
    key: str,
    start: StoredModel | None,
    by: Mapping[str, Objective] | None = None,
) -> StoredModel:
    """Train a model into the cache; a training that was cut off goes on where it stood."""
    folder, working = models_cache() / key, models_cache() / f"{key}.training"
    models_cache().mkdir(parents=True, exist_ok=True)
    with _one_process(models_cache() / f"{key}.lock"):
        if not config.train and _record(folder).get("key") == key:  # another process made it meanwhile
            return StoredModel(folder, "cached", _record(folder)["seconds"], key)
        model = config.load(start.folder) if start else new_model(config, pretrain, split)
        if start and by:
            module = distillation(model, ReferenceModel(partial(config.load, start.folder)), by, pretrain, split)
        else:
            module = training_module(model, pretrain.optim, split, pretrain.seed)
        part = "distil" if by else "pretrain"
        module.remedy = f"Type a smaller {part}.optim.lr, or {part}.optim.clip=1."
        seconds = fit(module, replace(trainer, precision="32"), working, f"training the {subject} model")
        if rank() == 0:
            finished = models_cache() / f".{key}.partial"
            shutil.rmtree(finished, ignore_errors=True)
            finished.mkdir()
            model.float().cpu().save_pretrained(finished)
            write_json(finished / "trained.json", {"key": key, "seconds": seconds, "subject": subject})
            shutil.rmtree(folder, ignore_errors=True)
            finished.replace(folder)
            shutil.rmtree(working, ignore_errors=True)
        barrier()
    _trained_here.add(key)
    return StoredModel(folder, "trained", seconds, key)


def new_model(config: ModelConfig, pretrain: Pretrain, split: Split) -> Wrapper:
    """Return the untrained model, initialised from a first batch where it asks for one."""
    stream = Randomness(pretrain.seed, "new")
    model = config.build(split.dataset.info, stream)
    if isinstance(model, InitialisesFromData):
        first = StepLoader({"retain": split}, {"retain": max(256, pretrain.optim.batch)}, stream.child("initialise"))
        model.initialise(split.batch(first.ids("retain", 0)), stream.child("initialise"))
    return model


def likelihood_quantiles(model: Any, dataset: Dataset, randomness: Randomness) -> Callable[[Tensor], Tensor]:
    """Return ids -> Gaussian likelihood quantile under the model, relative to its training items.

    The quantile is 1 - Phi(r) with r the z-score of bits/dim, as the taming paper picks its images (Malnick et al.,
    2024): 1 is the most likely.
    """
    everything, trained = torch.arange(len(dataset)), dataset.is_trained
    bits = bits_per_dim_of(model, dataset.batch, everything, randomness, draws=10)
    table = torch.special.ndtr(-Moments.of(bits[trained]).z(bits))

    return lambda ids: table[ids]


def shipped() -> list[Path]:
    """Return the folders of the models that ship with the package."""
    root = Path(str(files("unlearn"))) / "assets"
    return sorted(path.parent for path in root.glob("*/*/trained.json"))


def _content(folder: Path) -> str:
    """Return a hash of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / "trained.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


class _one_process:
    """Hold a lock on rank 0 while the body runs on all ranks."""

    def __init__(self, path: Path) -> None:
        self.lock = FileLock(path)

    def __enter__(self) -> None:
        if rank() == 0:
            try:
                self.lock.acquire(timeout=1)
            except Timeout:
                print("waiting for another process that trains this model", file=sys.stderr, flush=True)
                self.lock.acquire()
        barrier()

    def __exit__(self, *error: object) -> None:
        if rank() == 0:
            self.lock.release()
