"""The inputs of a run: data splits, target, retrained model."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from unlearn.config.schema import Distil, Pretrain, Recipe
from unlearn.config.single_request import each_request
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Split
from unlearn.data.splits import make_splits, train_split
from unlearn.experiment.model_store import StoredModel, given
from unlearn.experiment.pretraining import find_or_train, likelihood_quantiles
from unlearn.models.base import Wrapper


@dataclass(frozen=True)
class RunInputs:
    """What a run works on, all checked before anything is written.

    Args:
        splits: forget, retain, holdout and test.
        target: the model that unlearning begins from.
        retrained: the model that never saw the forget data, None where there is none.
        clean: the model that the target was corrupted from, None where there is none.
        teacher: the model that the target was distilled from, None where there is none.
        start: the result of the request before, from which this one begins; None where it begins from the target.
        so_far: the splits of all requests so far, None where this is the first one.
    """

    splits: dict[str, Split]
    target: StoredModel
    retrained: StoredModel | None = None
    clean: StoredModel | None = None
    teacher: StoredModel | None = None
    start: StoredModel | None = None
    so_far: dict[str, Split] | None = None

    @property
    def begun(self) -> StoredModel:
        """The model that the steps begin from, and that objectives compare with."""
        return self.start or self.target

    @property
    def facts(self) -> dict[str, str]:
        """Hashes of data and models, which must be the same when the run is resumed."""
        data = " ".join(f"{name} {split.dataset.content(split.ids)}" for name, split in self.splits.items())
        models = {"target model": self.target, "retrained model": self.retrained, "teacher": self.teacher}
        models["result before"] = self.start
        keys = {name: stored.key for name, stored in models.items() if stored is not None and stored.key}
        return {"data": hashlib.sha256(data.encode()).hexdigest()[:16], **keys}

    @property
    def models(self) -> dict[str, StoredModel]:
        """All stored models by subject, in the order in which evaluators see them after the unlearned one."""
        named = {"target": self.target, "retrained": self.retrained, "teacher": self.teacher, "clean": self.clean}
        return {subject: stored for subject, stored in named.items() if stored is not None}

    def release(self) -> None:
        """Move every stored model back to the CPU, each tensor in its own type."""
        for stored in self.models.values():
            stored.release()
        self.begun.release()


Obtain = Callable[..., StoredModel]
"""``find_or_train``, or something with its arguments."""


def gather_inputs(
    recipe: Recipe,
    seed: int,
    model: Wrapper | None,
    dataset: Dataset,
    obtain: Obtain = find_or_train,
    start: StoredModel | None = None,
) -> RunInputs:
    """Find or train the target, draw the splits, then find or train the retrained model.

    Args:
        recipe: of a single run.
        seed: of the run.
        model: the target, where it is already in memory.
        dataset: the data as the model reads it.
        obtain: finds or trains a model.
        start: the result of the request before.
    """
    config = recipe.model
    clean = teacher = retrained = None
    if model is not None:
        target = StoredModel.in_memory(model)
    else:
        target = begun = _target(recipe, dataset, obtain)
        if recipe.corrupt is not None:
            clean, target = begun, _corrupted(recipe, begun, dataset, obtain)
        if recipe.distil is not None:
            teacher, target = begun, distilled(recipe, recipe.distil, begun, dataset, obtain)
    if target.origin in ("given", "in memory"):
        target.shared().check_fits(dataset.info)
    quantiles = None
    if recipe.asks_likelihood:
        quantiles = likelihood_quantiles(target.shared(), dataset, Randomness(recipe.pretrain.seed, "quantile"))
    before = recipe.requests.before if recipe.requests else []
    drawn = dataset, recipe.data, Randomness(seed, "splits"), quantiles, before
    splits = make_splits(*drawn)
    so_far = make_splits(*drawn, so_far=True) if before else None
    if config.retrained is not None:
        retrained = given("model.retrained", config, config.retrained)
    elif model is None and config.pretrained is None and recipe.pretrain.retrained:
        retrained = obtain(config, recipe.pretrain, recipe.trainer, _without(so_far or splits), "retrained")
    return RunInputs(splits, target, retrained, clean, teacher, start, so_far)


def _target(recipe: Recipe, dataset: Dataset, obtain: Obtain) -> StoredModel:
    config = recipe.model
    if config.pretrained is not None:
        return given("model.pretrained", config, config.pretrained)
    return obtain(config, recipe.pretrain, recipe.trainer, train_split(dataset), "target")


def _corrupted(recipe: Recipe, clean: StoredModel, dataset: Dataset, obtain: Obtain) -> StoredModel:
    """Return the clean model, trained further on the corrupted items."""
    ids = torch.empty(0) if dataset.is_corrupt is None else torch.nonzero(dataset.is_corrupt).flatten()
    if recipe.corrupt is None or len(ids) == 0:
        raise RecipeError("corrupt: the data has no corrupted items. Type data.corrupt=[NAME, ...], or corrupt=null.")
    further = Pretrain(seed=recipe.corrupt.seed, optim=recipe.corrupt.optim)
    return obtain(recipe.model, further, recipe.trainer, Split("corrupted", dataset, ids), "corrupted", clean)


def distilled(
    recipe: Recipe, distil: Distil, teacher: StoredModel, dataset: Dataset, obtain: Obtain = find_or_train
) -> StoredModel:
    """Return the model that the recipe's distillation makes of the teacher on all training items."""
    if distil.pretrained is not None:
        return given("distil.pretrained", recipe.model, distil.pretrained)
    config = replace(recipe.model, train=recipe.model.train or distil.train)
    further = Pretrain(seed=distil.seed, optim=distil.optim)
    split = train_split(dataset)
    return obtain(config, further, recipe.trainer, split, "distilled", teacher, recipe.distil_by)


def _without(splits: dict[str, Split]) -> Split:
    """Return all training items that are not forgotten."""
    everything = train_split(splits["forget"].dataset)
    keep = ~torch.isin(everything.ids, splits["forget"].ids)
    return Split("without", everything.dataset, everything.ids[keep])


def training_items(recipe: Recipe, dataset: Dataset) -> Split:
    """Return the training items of the retrained model, for a recipe whose selections need no target."""
    return _without(make_splits(dataset, recipe.data, Randomness(recipe.seeds[0], "splits")))


def rehearse(recipe: Recipe, dataset: Dataset) -> dict[str, Split]:
    """Draw the splits without a model (quantiles unknown), so that wrong data is refused at once.

    Of several requests each is tried, and the splits of the first one are returned.
    """
    if several := each_request(recipe):
        first, *_ = [_rehearse_request(one, dataset) for one in several]
        return first
    known = without_quantiles(recipe)
    before = known.requests.before if known.requests else []
    splits = make_splits(dataset, known.data, Randomness(recipe.seeds[0], "splits"), before=before)
    for evaluator in recipe.evaluate.values():
        evaluator.check(splits)
    for group in ("forget", "retain"):
        for term in getattr(recipe, group).values():
            term.check(splits, group)
    remarks(splits)
    return splits


def _rehearse_request(recipe: Recipe, dataset: Dataset) -> dict[str, Split]:
    """Draw the splits of one request, whose name stands before what is wrong with it."""
    try:
        return rehearse(recipe, dataset)
    except RecipeError as error:
        about = recipe.requests.about if recipe.requests else {}
        raise RecipeError(f"{' '.join(*about.items())}: {error}") from error


def remarks(splits: Mapping[str, Split]) -> list[str]:
    """Return notes on the items that are trained on. Raises RecipeError where they cannot be used."""
    return [
        f"{name}: {line}" for name in ("forget", "retain") for line in splits[name].dataset.remarks(splits[name].ids)
    ]


def without_quantiles(recipe: Recipe) -> Recipe:
    """Return a recipe whose selections do not ask for likelihoods, so that they need no target."""
    source = replace(recipe.data)
    for name in ("forget", "retain", "holdout"):
        setattr(source, name, replace(getattr(source, name), likelihood_quantile=None))
    requests = recipe.requests
    if requests and requests.sequence:
        anything = [replace(one, likelihood_quantile=None) for one in requests.sequence]
        requests = replace(requests, sequence=anything)
    return replace(recipe, data=source, requests=requests)
