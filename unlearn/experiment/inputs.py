"""What a run works on: data splits, target and retrained model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from unlearn.config.schema import Distil, Pretrain, Recipe
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Split
from unlearn.data.splits import make_splits, train_split
from unlearn.experiment.pretraining import StoredModel, find_or_train, given, likelihood_quantiles
from unlearn.models.base import Wrapper


@dataclass(frozen=True)
class RunInputs:
    """What a run works on, all checked before anything is written.

    Args:
        dataset: all items.
        splits: forget, retain, holdout and test.
        load_target: reads the target afresh.
        load_retrained: reads the retrained model afresh, None where there is none.
        target: where the target came from, None for a model in memory.
        retrained: where the retrained model came from, None where there is none.
        load_clean: reads the model that the target was corrupted from, None where there is none.
        teacher: where the model that the target was distilled from came from, None where there is none.
        load_teacher: reads that model afresh, None where there is none.
    """

    dataset: Dataset
    splits: dict[str, Split]
    load_target: Callable[[], Wrapper]
    load_retrained: Callable[[], Wrapper] | None
    target: StoredModel | None
    retrained: StoredModel | None = None
    load_clean: Callable[[], Wrapper] | None = None
    teacher: StoredModel | None = None
    load_teacher: Callable[[], Wrapper] | None = None

    @property
    def origin(self) -> str:
        """Where the target came from, in a word."""
        return self.target.origin if self.target else "in memory"

    @property
    def facts(self) -> dict[str, str]:
        """What a resumed run must find again: hashes of the data and of the models."""
        data = " ".join(f"{name} {split.dataset.content(split.ids)}" for name, split in self.splits.items())
        models = {"target model": self.target, "retrained model": self.retrained, "teacher": self.teacher}
        found = {name: trained.key for name, trained in models.items() if trained is not None}
        return {"data": hashlib.sha256(data.encode()).hexdigest()[:16], **found}

    @property
    def target_seconds(self) -> float | None:
        """What the target's training took, None where it is unknown."""
        return self.target.seconds if self.target else None


def gather_inputs(recipe: Recipe, seed: int, model: Wrapper | None, dataset: Dataset) -> RunInputs:
    """Find or train the target, draw the splits, then find or train the retrained model."""
    config = recipe.model
    target = clean = teacher = None
    load_target: Callable[[], Wrapper]
    if model is not None:
        load_target = partial(copy.deepcopy, model)
    else:
        target = clean = _target(recipe, dataset)
        if recipe.corrupt is not None:
            target = _corrupted(recipe, clean, dataset)
        if recipe.distil is not None:
            teacher, target = clean, distilled(recipe, recipe.distil, clean, dataset)
        load_target = partial(config.load, target.folder)
    if target is None or target.origin == "given":
        load_target().check_fits(dataset.info)
    quantiles = None
    if recipe.data.asks_likelihood:
        quantiles = likelihood_quantiles(load_target().eval(), dataset, Randomness(recipe.pretrain.seed, "quantile"))
    splits = make_splits(dataset, recipe.data, Randomness(seed, "splits"), quantiles)
    retrained: StoredModel | None = None
    if config.retrained is not None:
        retrained = given("model.retrained", config, config.retrained)
    elif model is None and config.pretrained is None and recipe.pretrain.retrained:
        retrained = find_or_train(config, recipe.pretrain, recipe.trainer, _without(splits), "retrained")
    load_retrained = None if retrained is None else partial(config.load, retrained.folder)
    load_clean = partial(config.load, clean.folder) if clean and recipe.corrupt else None
    load_teacher = partial(config.load, teacher.folder) if teacher else None
    return RunInputs(dataset, splits, load_target, load_retrained, target, retrained, load_clean, teacher, load_teacher)


def _target(recipe: Recipe, dataset: Dataset) -> StoredModel:
    config = recipe.model
    if config.pretrained is not None:
        return given("model.pretrained", config, config.pretrained)
    return find_or_train(config, recipe.pretrain, recipe.trainer, train_split(dataset), "target")


def _corrupted(recipe: Recipe, clean: StoredModel, dataset: Dataset) -> StoredModel:
    """Return the clean model, trained further on the items with wrong content."""
    ids = torch.empty(0) if dataset.is_corrupt is None else torch.nonzero(dataset.is_corrupt).flatten()
    if recipe.corrupt is None or len(ids) == 0:
        raise RecipeError("corrupt: the data has no corrupted items. Type data.corrupt=[NAME, ...], or corrupt=null.")
    further = Pretrain(seed=recipe.corrupt.seed, optim=recipe.corrupt.optim)
    return find_or_train(recipe.model, further, recipe.trainer, Split("corrupted", dataset, ids), "corrupted", clean)


def distilled(recipe: Recipe, distil: Distil, teacher: StoredModel, dataset: Dataset) -> StoredModel:
    """Return the model that the recipe's distillation makes of the teacher on all training items."""
    if distil.pretrained is not None:
        return given("distil.pretrained", recipe.model, distil.pretrained)
    config = replace(recipe.model, train=recipe.model.train or distil.train)
    further = Pretrain(seed=distil.seed, optim=distil.optim)
    split = train_split(dataset)
    return find_or_train(config, further, recipe.trainer, split, "distilled", teacher, recipe.distil_by)


def _without(splits: dict[str, Split]) -> Split:
    """Return all training items that are not forgotten."""
    everything = train_split(splits["forget"].dataset)
    keep = ~torch.isin(everything.ids, splits["forget"].ids)
    return Split("without", everything.dataset, everything.ids[keep])


def training_items(recipe: Recipe, dataset: Dataset) -> Split:
    """Return what the retrained model is trained on, for a recipe whose selections do not ask the target."""
    return _without(make_splits(dataset, recipe.data, Randomness(recipe.seeds[0], "splits")))


def rehearse(recipe: Recipe, dataset: Dataset) -> dict[str, Split]:
    """Draw the splits before any model is there (quantiles unknown), so that wrong data is refused at once."""
    splits = _rehearsed(recipe, dataset)
    for evaluator in recipe.evaluate.values():
        evaluator.check(splits)
    for group in ("forget", "retain"):
        for term in getattr(recipe, group).values():
            term.check(splits, group)
    remarks(splits)
    return splits


def remarks(splits: Mapping[str, Split]) -> list[str]:
    """Return what a user should know of the items that are trained on. Raises RecipeError where they cannot serve."""
    return [
        f"{name}: {line}" for name in ("forget", "retain") for line in splits[name].dataset.remarks(splits[name].ids)
    ]


def _rehearsed(recipe: Recipe, dataset: Dataset) -> dict[str, Split]:
    source = replace(recipe.data)
    for name in ("forget", "retain", "holdout"):
        setattr(source, name, replace(getattr(source, name), likelihood_quantile=None))
    return make_splits(dataset, source, Randomness(recipe.seeds[0], "splits"))
