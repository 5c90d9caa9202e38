"""What an objective is: hyper-parameters, and a per-sample value with named diagnostics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor, nn

from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.reference_cache import ReferenceCache
from unlearn.core.validation import at_least
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import M, M_co, Model


@dataclass(frozen=True)
class AuxiliaryNetwork:
    """Another network that a term trains beside the model: a fake score, a discriminator, a key.

    Its losses are read from the splits that ``groups`` names, and its step comes before each step of the model, which
    alone counts. The losses must not reach the model's own parameters: take what the model draws without gradient.

    Attributes:
        name: for the log; companions of one name, brought by several terms, are one network with the losses of all.
        build: makes the network, in its place and float type like the model. Its parameters that ask for a gradient
            move; its buffers must not, as only what moves is in a checkpoint.
        groups: its terms by split name.
        optim: how the model moves -> how it moves; steps and batches are the model's, an average there is none.
        warmup: steps that it takes alone before the model's first step; they do not count either.
        rests: whether it moves in those steps only, and holds still once the model moves.
        file: of safetensors in the run directory, beside ``model/``, into which it is written after the last step;
            empty for none.
    """

    name: str
    build: Callable[[], nn.Module]
    groups: Mapping[str, Mapping[str, Objective]]
    optim: Callable[[Optim], Optim]
    warmup: int = 0
    rests: bool = False
    file: str = ""


@contextmanager
def frozen(network: Model) -> Iterator[None]:
    """Hold a network still while a loss runs forward through it: no gradient is taken for its parameters."""
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Context(Generic[M_co]):
    """What an objective may use besides the model and the batch.

    Attributes:
        step: number of steps taken so far; below 0 while a companion warms up.
        randomness: stream of this objective at this step.
        splits: the data by split name (forget, retain, holdout, test).
        state: the objective's own state; tensors, numbers, strings and lists of them. It is in every checkpoint
            and, written in ``prepare`` and ``before_step`` only, the same on every rank.
        reference: returns the frozen target (asked for lazily, so that it costs nothing where it is not used).
        map_ids: applies a function (ids -> rows) to many ids without gradient, shared among ranks
            (unlearn.core.distributed.map_ids).
        device: where batches live.
        remembered: the target's values that ``remember`` keeps.
        split: whose items this term reads: the split of its group.
        companion: the network that this term's ``auxiliary`` gave; for its terms as well.
        distilled_from: returns the frozen model that the target was distilled from, where it was.
        shared: what terms of one step leave for each other; empty at the beginning of a step.
        averaged: returns a context in which the model has the average of its weights (``optim.ema``); None where no
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

    def remember(
        self, name: str, split: str, compute: Callable[[Batch], tuple[Tensor, Tensor]], ids: Tensor | None = None
    ) -> None:
        """Compute once, in ``prepare``, values of the target for the items of a split.

        Before the first step the model still is the target, so no second copy of it is needed.

        Args:
            name: e.g. ``log_prob``; terms that ask for the same name share the values.
            split: whose items.
            compute: batch -> (rows (n, ...) of all items in their order, number of rows of each (B,)).
            ids: of which items, by default of all.
        """
        if self.reference_cache is None:
            raise RuntimeError("there is no place for the target's values: the module was given none")
        chosen = self.splits[split].ids if ids is None else ids
        self.reference_cache.put(f"{split}.{name}", chosen, lambda ids: compute(self.batch(split, ids)))

    def recall(self, name: str, split: str, ids: Tensor) -> Tensor:
        """Return the remembered rows of items, one after the other, on the device."""
        if self.reference_cache is None:
            raise RuntimeError("there is no place for the target's values: the module was given none")
        return self.reference_cache.get(f"{split}.{name}", ids)

    def beside(self) -> Any:
        """Return the network that is trained beside the model. Raises RuntimeError where this term has none."""
        if self.auxiliary is None:
            raise RuntimeError("no network is trained beside the model: the phases were made without companions")
        return self.auxiliary

    def teacher(self) -> M_co:
        """Return the frozen model that the target was distilled from, or the target where it was not distilled."""
        return (self.distilled_from or self.reference)()

    def batch(self, split: str, ids: Tensor, form: str = "") -> Batch:
        """Return items of a split on the device, in another form where one is named (a refusal, a paraphrase)."""
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

    ``Objective[HasLikelihood]`` asks the model for likelihoods; a recipe with a model that lacks them is refused.

    Args:
        weight: factor of this term, >= 0.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range with a ValueError; subclasses extend it."""
        at_least(self, weight=0)

    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse data that this term cannot use, before any work, with a RecipeError; it reads ``splits[split]``."""

    def attach(self, model: M) -> None:
        """Make the model what this term needs, before anything else; called again where a run is resumed."""

    def auxiliary(
        self, model: M, teacher: Callable[[], M], split: str, randomness: Randomness
    ) -> AuxiliaryNetwork | None:
        """Return another network that is trained beside the model, None for none.

        Args:
            model: that moves, with gradients asked for where the scope lets it.
            teacher: returns the frozen model that the target was distilled from, or the target.
            split: whose items this term reads.
            randomness: of the network's first weights.
        """
        return None

    def prepare(self, model: M, context: Context[M]) -> None:
        """Compute once, before the first step, what the run needs; write it to ``context.state``."""

    def before_step(self, model: M, context: Context[M]) -> bool:
        """Run before each step, without gradient; return True to stop the run (the goal is reached)."""
        return False

    def after_step(self, measured: Mapping[str, float], context: Context[M]) -> None:
        """Run after each step, if ``followed``, with the means of this term's diagnostics over the whole batch."""

    follows: ClassVar[bool] = False
    """Whether ``after_step`` is called: a dual variable moves with what is measured."""

    def followed(self, context: Context[M]) -> bool:
        """Whether ``after_step`` is called in this run; the same on every rank."""
        return self.follows

    @abstractmethod
    def __call__(self, model: M, batch: Batch, context: Context[M]) -> Values:
        """Return the per-sample values of a batch."""

    def sample_weight(self, batch: Batch) -> Tensor:
        """Return how much each sample counts, (B,); tokens where samples count unequally."""
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
        """Return the scalar penalty on the parameters that may move, by name."""
