"""Base classes of objectives: hyper-parameters, and a per-sample value with named diagnostics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, Self

import torch
from torch import Tensor, nn

from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_cache import ReferenceCache
from unlearn.core.validation import NonNegativeFloat, check_ranges, smallest
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import M, M_co


@dataclass(frozen=True)
class AuxiliaryNetwork:
    """Another network that a term trains alongside the model: a fake score, a discriminator, a key.

    It takes a step on its own losses, read from the splits that ``groups`` names, before each step of the model; only
    the model's steps count. Its losses must not reach the model's parameters: use the model's samples without gradient.

    Attributes:
        name: for the log. Terms that bring a network of one name share it, and it is trained on the losses of all.
        build: creates the network, with the device and float type of the model. Its parameters with ``requires_grad``
            are trained; its buffers must not change, as a checkpoint holds only what is trained.
        groups: its terms by split name.
        optim: maps the model's ``Optim`` to this network's. ``steps`` and ``batch`` are inherited; no EMA is kept.
        warmup: steps that it takes alone before the model's first step; they do not count either.
        rests: if true, it is trained only during warm-up and then frozen.
        file: name of a safetensors file in the run directory, next to ``model/``, in which it is written after the last
            step; empty for none.
    """

    name: str
    build: Callable[[], nn.Module]
    groups: Mapping[str, Mapping[str, Objective[Any]]]
    optim: Callable[[Optim], Optim]
    warmup: int = 0
    rests: bool = False
    file: str = ""


@dataclass(frozen=True)
class Context(Generic[M_co]):
    """What an objective may use besides the model and the batch.

    Attributes:
        step: number of steps taken so far; below 0 during the warm-up of another network.
        randomness: random stream of this objective at this step.
        splits: the data by split name (forget, retain, holdout, test).
        state: the objective's own state: tensors, numbers, strings and lists of them. It is in every checkpoint and,
            if it is written in ``prepare`` and ``before_step`` only, the same on every rank.
        reference: returns the frozen target; it is loaded at the first call, so an unused reference costs nothing.
        map_ids: applies a function (ids -> rows) to many ids without gradient, shared among ranks
            (unlearn.core.distributed.map_ids).
        device: of the batches.
        reference_cache: holds what ``remember`` computes.
        split: the split whose items this term reads.
        auxiliary: the network that this term's ``auxiliary`` returned; its own terms have it as well.
        distilled_from: returns the frozen model that the target was distilled from, if it was.
        shared: values that the terms of one step leave for each other; empty at the beginning of a step.
        averaged: returns a context in which the model has the average of its weights (``optim.ema``); None if no
            average is kept.
    """

    step: int
    randomness: Randomness
    splits: Mapping[str, Split]
    state: dict[str, Any]
    reference: Callable[[], M_co]
    map_ids: Callable[..., Tensor]
    device: torch.device
    reference_cache: ReferenceCache | None = None
    split: str = "forget"
    auxiliary: Any = None
    distilled_from: Callable[[], M_co] | None = None
    shared: dict[Any, Any] = field(default_factory=dict)
    averaged: Callable[[], AbstractContextManager[None]] | None = None

    @property
    def cache(self) -> ReferenceCache:
        """The ``reference_cache``. Raises RuntimeError where there is none."""
        if self.reference_cache is None:
            raise RuntimeError("The target's values have no folder. Call module.cache_reference_in(FOLDER) first.")
        return self.reference_cache

    def remember(
        self, name: str, split: str, compute: Callable[[Batch], tuple[Tensor, Tensor]], ids: Tensor | None = None
    ) -> None:
        """Compute values of the target once, in ``prepare``, for the items of a split.

        Before the first step the model is the target, so no second copy of it is needed.

        Args:
            name: e.g. ``log_prob``; terms that use the same name share the values.
            split: the split of the items.
            compute: batch -> (rows (n, ...) of all items in their order, number of rows of each (B,)).
            ids: of the items, by default of all.
        """
        chosen = self.splits[split].ids if ids is None else ids
        self.cache.put(f"{split}.{name}", chosen, lambda ids: compute(self.batch(split, ids)))

    def recall(self, name: str, split: str, ids: Tensor) -> Tensor:
        """Return the rows that ``remember`` computed for items, concatenated, on the device."""
        return self.cache.get(f"{split}.{name}", ids)

    def beside(self) -> Any:
        """Return the network that is trained alongside the model. Raises RuntimeError where this term has none."""
        if self.auxiliary is None:
            raise RuntimeError("No network is trained beside the model. Build the module with training.build_module.")
        return self.auxiliary

    def key(self, name: str, batch: Batch) -> tuple[str, str, int]:
        """Return the key in ``shared`` of what one term leaves for another in this very batch."""
        return name, self.split, id(batch)

    def teacher(self) -> M_co:
        """Return the frozen model that the target was distilled from, or the target if it was not distilled."""
        return (self.distilled_from or self.reference)()

    def batch(self, split: str, ids: Tensor, form: str = "") -> Batch:
        """Return items of a split on the device, in another form if one is named (a refusal, a paraphrase)."""
        data = self.splits[split]
        found = data.dataset.form(form, ids.cpu()) if form else data.batch(ids.cpu())
        return {key: value.to(self.device) for key, value in found.items()}


@dataclass(frozen=True)
class Values:
    """Per-sample values, (B,) or (B, K), with gradient, and diagnostics, each (B,) or scalar, without."""

    values: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Objective(ABC, Generic[M]):
    """One term of the loss. Smaller is better; the loss is ``weight * reduce(values)``.

    ``Objective[HasLikelihood]`` requires likelihoods of the model; a recipe with a model that lacks them is refused.

    Args:
        weight: factor of this term, >= 0.
    """

    weight: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        """Raise a ValueError for values outside of the ranges that their types state; subclasses extend it."""
        check_ranges(self)

    prepares_with: ClassVar[tuple[str, ...]] = ()
    """Counts (or parts that hold some) that say how much is done before the first step."""

    def smallest(self) -> Self:
        """Return a copy that prepares as little as its settings allow, for ``--check``."""
        others = {field.name for field in fields(self)} - set(self.prepares_with)
        return smallest(self, least=2, keep=others)

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Raise a RecipeError, before any work, for data that this term cannot use; it reads ``splits[split]``."""

    def attach(self, model: M) -> None:
        """Change the model into what this term needs, before anything else; called again when a run is resumed."""

    def auxiliary(
        self, model: M, teacher: Callable[[], M], split: str, randomness: Randomness
    ) -> AuxiliaryNetwork | None:
        """Return another network to train alongside the model, or None.

        Args:
            model: to be trained; ``requires_grad`` is set as the scope says.
            teacher: returns the frozen model that the target was distilled from, or the target.
            split: the split whose items this term reads.
            randomness: of the network's initial weights.
        """
        return None

    def prepare(self, model: M, context: Context[M]) -> None:
        """Run once before the first step; results that the run needs go to ``context.state``."""

    def before_step(self, model: M, context: Context[M]) -> bool:
        """Run before each step, without gradient; return True to stop the run (the goal is reached)."""
        return False

    def after_step(self, measured: Mapping[str, float], context: Context[M]) -> None:
        """Run after each step, if ``followed``, with the means of this term's diagnostics over the whole batch."""

    follows: ClassVar[bool] = False
    """Whether ``after_step`` is called: a dual variable is updated by what is measured."""

    def followed(self, context: Context[M]) -> bool:
        """Whether ``after_step`` is called in this run; the same on every rank."""
        return self.follows

    @abstractmethod
    def __call__(self, model: M, batch: Batch, context: Context[M]) -> Values:
        """Return the per-sample values of a batch."""

    def sample_weight(self, batch: Batch) -> Tensor:
        """Return the weight of each sample, (B,): 1, or e.g. its number of tokens."""
        return torch.ones(len(batch["id"]), device=batch["id"].device)

    def reduce(self, values: Tensor, weights: Tensor) -> Tensor:
        """Turn the values (N,) or (N, K) and weights (N,) of the GLOBAL batch into the loss, a scalar.

        The default is the weighted mean. A statistic of the batch overrides it and sets ``over_batch``; its
        gradient then reaches every sample on every rank.
        """
        return (values * weights).sum() / weights.sum()

    over_batch: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class ParameterObjective(Objective[M]):
    """A term over parameters instead of samples (EWC, distance to the target)."""

    def __call__(self, model: M, batch: Batch, context: Context[M]) -> Values:
        """Not used: see ``penalty``."""
        raise TypeError("a parameter objective has no per-sample values")

    @abstractmethod
    def penalty(self, parameters: Mapping[str, Tensor], context: Context[M]) -> Tensor:
        """Return the scalar penalty on the trained parameters, given by name."""
