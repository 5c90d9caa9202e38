"""Stored models: where they are found, which key they go by, and how a run reads each of them once."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unlearn.config import registry
from unlearn.config.schema import Pretrain, Recipe
from unlearn.core.distributed import barrier, rank
from unlearn.core.errors import RecipeError
from unlearn.core.files import content_hash, models_cache
from unlearn.core.float_types import cast_back, float_types
from unlearn.data.base import Split
from unlearn.models.base import ModelConfig, Wrapper, refuse_not_finite
from unlearn.objectives.base import Objective

FORMAT = 1
"""Part of every cache key: raised when a change of the code makes trained models differ."""


@dataclass(eq=False)
class StoredModel:
    """A model that a run begins from or compares with. It is read once and then kept in CPU memory.

    Args:
        read: reads the model.
        origin: given, shipped, cached, trained, or in memory.
        seconds: duration of its training, None where unknown.
        key: hash of everything that shaped it, or of the files of a given one; empty for a model in memory.
        folder: what ``from_pretrained`` reads, None for a model in memory.
    """

    read: Callable[[], Wrapper]
    origin: str
    seconds: float | None = None
    key: str = ""
    folder: Path | None = None
    _kept: Wrapper | None = field(default=None, init=False, repr=False)

    @classmethod
    def at(cls, folder: Path, config: ModelConfig, origin: str, key: str, seconds: float | None = None) -> StoredModel:
        """Return the model in a folder, read as ``config`` says."""

        def read() -> Wrapper:
            model = config.load(folder)
            if origin != "given":  # the recipe's own model is one of float32, though its copy ships in half precision
                model.save_as_in_memory()
            return model

        return cls(read, origin, seconds, key, folder)

    @classmethod
    def in_memory(cls, model: Wrapper) -> StoredModel:
        """Return a user's own model, which is left as it is. Raises RecipeError where its weights are not finite."""
        refuse_not_finite(model, "The model in memory")
        return cls(partial(copy.deepcopy, model), "in memory")

    def shared(self) -> Wrapper:
        """Return the one frozen copy that is kept, in eval mode. Whoever moves it to a device calls ``release``."""
        if self._kept is None:
            self._kept = self.read()
            self._types = float_types(self._kept)
            self._modes = [module.training for module in self._kept.modules()]
            self._trainable = [parameter.requires_grad for parameter in self._kept.parameters()]
        return self._kept.eval().requires_grad_(False)

    def copy(self) -> Wrapper:
        """Return a copy whose weights may change; mode and gradients are as they were when the model was read."""
        model = copy.deepcopy(self.shared())
        for module, mode in zip(model.modules(), self._modes, strict=True):
            module.training = mode
        for parameter, trainable in zip(model.parameters(), self._trainable, strict=True):
            parameter.requires_grad_(trainable)
        return model

    def release(self) -> None:
        """Move the kept copy back to the CPU, each tensor in its own type."""
        if self._kept is not None:
            self.cast_back(self._kept.to("cpu"))

    def cast_back(self, model: Wrapper) -> None:
        """Give a model made of this one the types that the tensors had when it was read."""
        self.shared()
        cast_back(model, self._types)


def given(key: str, config: ModelConfig, path: str) -> StoredModel:
    """Return the model at a path or hub id that the recipe names under ``key``. Raises RecipeError if unreadable."""
    try:
        folder = config.fetch(path)
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from error
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        raise RecipeError(f"{key}: {folder} is a run directory. Type {key}={folder / 'model'}")
    stored = StoredModel.at(folder, config, "given", content_hash(folder))
    stored.shared()  # read before any work, so that a broken model is refused at once
    return stored


def find(config: ModelConfig, key: str) -> StoredModel | None:
    """Return the shipped or cached model that goes by a key, None where there is none."""
    for folder in (*shipped(), models_cache() / key):
        record = trained_record(folder)
        if record.get("key") == key:
            origin = "cached" if folder.parent == models_cache() else "shipped"
            return StoredModel.at(folder, config, origin, key, record["seconds"])
    return None


def folder_of(recipe: Recipe, key: str | None) -> Path:
    """Return the folder of a run's target, which ships, is cached, or was given.

    Args:
        recipe: of the run.
        key: of the target, from the run's ``run.json``; None where the target was in memory.

    Raises:
        RecipeError: it is not there any more, or was never in a folder.
    """
    if key is None:
        raise RecipeError("The run began from a model in memory, which has no folder. Give one: --base FOLDER")
    if (found := find(recipe.model, key)) and found.folder:
        return found.folder
    for path in (recipe.model.pretrained, recipe.distil.pretrained if recipe.distil else None):
        if path is not None and content_hash(recipe.model.fetch(path)) == key:
            return recipe.model.fetch(path)
    raise RecipeError(
        f"The run's target ({key}) is neither in {models_cache()} nor as it was where the recipe says. "
        "Give its folder: --base FOLDER"
    )


def training_key(
    config: ModelConfig,
    pretrain: Pretrain,
    split: Split,
    start: StoredModel | None = None,
    by: Mapping[str, Objective[Any]] | None = None,
) -> str:
    """Return the hash of everything that shapes a trained model."""
    shape = {
        "format": FORMAT,
        "kind": registry.name_of("model", type(config)),
        "model": config.in_training(),
        "optim": asdict(pretrain.optim),
        "seed": pretrain.seed,
        "data": split.dataset.content(split.ids),
        "info": split.dataset.info,
        "start": start.key if start else None,
    }
    if by:
        shape["by"] = {name: [registry.name_of("objective", type(term)), asdict(term)] for name, term in by.items()}
    return hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest()[:16]


def shipped() -> list[Path]:
    """Return the folders of the models that ship with the package."""
    root = Path(str(files("unlearn"))) / "assets"
    return sorted(path.parent for path in root.glob("*/*/trained.json"))


def trained_record(folder: Path) -> dict[str, Any]:
    """Return the ``trained.json`` of a folder; empty where there is none, or a broken one."""
    try:
        record: dict[str, Any] = json.loads((folder / "trained.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Hold a lock file on rank 0 while the body runs on all ranks."""
    lock = FileLock(path)
    if rank() == 0:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print("waiting for another process that trains this model", file=sys.stderr, flush=True)
            lock.acquire()
    barrier()
    try:
        yield
    finally:
        if rank() == 0:
            lock.release()
