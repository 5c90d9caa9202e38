"""Finds or trains the target, the retrained model, and the models that the target is made from."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unlearn.config.schema import Pretrain, Trainer
from unlearn.core.distributed import barrier, rank
from unlearn.core.files import models_cache, write_json
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import ReferenceModel
from unlearn.data.base import Dataset, Split
from unlearn.experiment.model_store import StoredModel, find, one_process, trained_record, training_key
from unlearn.models.base import ModelConfig, Wrapper
from unlearn.models.capabilities import InitialisesFromData
from unlearn.models.likelihood import Moments, bits_per_dim_of
from unlearn.objectives.base import Objective
from unlearn.training.build import build_module, training_module
from unlearn.training.dataloader import StepLoader
from unlearn.training.fit import fit

_trained_here: set[str] = set()
"""Keys trained anew by this process: several seeds share one target, also under ``model.train=true``."""


def find_or_train(
    config: ModelConfig,
    pretrain: Pretrain,
    trainer: Trainer,
    split: Split,
    subject: str,
    start: StoredModel | None = None,
    by: Mapping[str, Objective[Any]] | None = None,
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
    if (not config.train or key in _trained_here) and (found := find(config, key)):
        return found
    return train(config, pretrain, trainer, split, subject, key, start, by)


def find_or_build(
    config: ModelConfig,
    pretrain: Pretrain,
    trainer: Trainer,
    split: Split,
    subject: str,
    start: StoredModel | None = None,
    by: Mapping[str, Objective[Any]] | None = None,
) -> StoredModel:
    """Return what ``find_or_train`` would, without training: the model it would start from where none is there."""
    known = start is None or start.key
    if known and (found := find(config, training_key(config, pretrain, split, start, by))):
        return found
    return start or StoredModel(lambda: new_model(config, pretrain, split), "untrained")


def train(
    config: ModelConfig,
    pretrain: Pretrain,
    trainer: Trainer,
    split: Split,
    subject: str,
    key: str,
    start: StoredModel | None,
    by: Mapping[str, Objective[Any]] | None = None,
) -> StoredModel:
    """Train a model into the cache; an interrupted training resumes at its last checkpoint."""
    folder, working = models_cache() / key, models_cache() / f"{key}.training"
    models_cache().mkdir(parents=True, exist_ok=True)
    with one_process(models_cache() / f"{key}.lock"):
        if not config.train and trained_record(folder).get("key") == key:  # another process made it meanwhile
            return StoredModel.at(folder, config, "cached", key, trained_record(folder)["seconds"])
        model = start.copy() if start else new_model(config, pretrain, split)
        part = "distil" if by else "pretrain"
        remedy = f"Type a smaller {part}.optim.lr, or {part}.optim.clip=1."
        if start and by:
            teacher = ReferenceModel(start.shared)
            module = build_module(
                model, {"retain": split}, pretrain.seed, retain=by, optim=pretrain.optim, target=teacher, remedy=remedy
            )
        else:
            module = training_module(model, pretrain.optim, split, pretrain.seed, remedy=remedy)
        seconds = fit(module, replace(trainer, precision="32"), working, f"training the {subject} model")
        if start:
            start.release()
        if rank() == 0:
            finished = models_cache() / f".{key}.partial"
            shutil.rmtree(finished, ignore_errors=True)
            finished.mkdir()
            model.to("cpu").save_pretrained(finished)
            write_json(finished / "trained.json", {"key": key, "seconds": seconds, "subject": subject})
            shutil.rmtree(folder, ignore_errors=True)
            finished.replace(folder)
            shutil.rmtree(working, ignore_errors=True)
        barrier()
    _trained_here.add(key)
    return StoredModel.at(folder, config, "trained", key, seconds)


def new_model(config: ModelConfig, pretrain: Pretrain, split: Split) -> Wrapper:
    """Return the untrained model, initialised from a first batch where its class needs one."""
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
