"""What several evaluators ask of a model, computed once: its samples and its bits per dimension."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unlearn.data.base import Split
from unlearn.distributed import map_ids
from unlearn.errors import RecipeError
from unlearn.evaluators.base import Evaluation
from unlearn.models.likelihood import bits_per_dim_of
from unlearn.randomness import Randomness

LIKELIHOOD_SPLITS = ("forget", "retain", "holdout", "test")
"""Splits whose likelihood is measured, in the order of the tables."""


@dataclass
class _Known:
    """What is known of a model as long as it stays as it is."""

    state: str
    values: dict[Any, Tensor] = field(default_factory=dict)


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def at_least(component: Any, **least: int) -> None:
    """Refuse fields of a component below their least value with a ValueError; None is allowed."""
    for name, bound in least.items():
        value = getattr(component, name)
        if value is not None and value < bound:
            raise ValueError(f"{name} is {value}; it must be >= {bound}")


def samples(evaluation: Evaluation, subject: str, n: int, batch_size: int = 256) -> Tensor:
    """Return the first n samples of a subject, (n, C, H, W) uint8 on the CPU.

    The noise is the same for every subject and every evaluator. A larger n later draws only what is missing.
    """
    model = evaluation.models[subject]
    values, key = _values(model), ("samples", evaluation.seed)
    drawn = values.get(key)
    start = 0 if drawn is None else len(drawn)
    if start < n:
        randomness = Randomness(evaluation.seed, "samples")

        def draw(ids: Tensor) -> Tensor:
            batch = model.sample(ids, randomness)
            if "image" not in batch:
                raise RecipeError(
                    f"The samples of {subject} are no images (they hold {', '.join(sorted(batch))}), and this "
                    "evaluator looks at images. Drop it from the recipe: evaluate.NAME=null."
                )
            return batch["image"]  # type: ignore[no-any-return]

        more = map_ids(draw, torch.arange(start, n, device=evaluation.device), batch_size).cpu()
        drawn = more if drawn is None else torch.cat((drawn, more))
        values[key] = drawn
    return drawn[:n]  # type: ignore[index]


def likelihoods(
    evaluation: Evaluation, subject: str, split: str, ids: Tensor, draws: int, batch_size: int = 256
) -> Tensor:
    """Return the bits/dim of items of a split, (n,) float64 on the CPU, each the mean over draws of the noise.

    The noise is the same for every subject and every evaluator. An item that was asked for before is not computed
    again.
    """
    model, dataset = evaluation.models[subject], evaluation.splits[split].dataset
    values, key = _values(model), ("bits", evaluation.seed, draws, dataset.fingerprint)
    bits = values.setdefault(key, torch.full((len(dataset),), torch.nan, dtype=torch.float64))
    missing = ids[bits[ids].isnan()]
    if len(missing):
        randomness = Randomness(evaluation.seed, "likelihood")
        found = bits_per_dim_of(
            model, partial(evaluation.batch, split), missing, randomness, draws, partial(map_ids, batch_size=batch_size)
        )
        bits[missing] = found.double().cpu()
    return bits[ids]


def some_of(evaluation: Evaluation, split: str, limit: int | None) -> Tensor:
    """Return the ids of a split, or ``limit`` of them drawn by the seed, in the split's order."""
    ids = evaluation.splits[split].ids
    if limit is None or len(ids) <= limit:
        return ids
    order = Randomness(evaluation.seed, f"items/{split}").permutation(len(ids))
    return ids[order[:limit].sort().values]


def present(evaluation: Evaluation) -> list[str]:
    """Return the likelihood splits that the evaluation has and that are not empty."""
    return [split for split in LIKELIHOOD_SPLITS if split in evaluation.splits and len(evaluation.splits[split])]


def forgotten_names(split: Split) -> list[str]:
    """Return the labels and attributes that the forget split takes as a whole.

    A name is forgotten where three quarters or more of the training items that carry it are forget items: the threes
    are forgotten where all threes are, but not where eight images of a three are.
    """
    dataset = split.dataset
    forget = torch.zeros(len(dataset), dtype=torch.bool)
    forget[split.ids] = True
    return [name for name in dataset.names if _share(forget, dataset.having([name]) & ~dataset.is_test) >= 0.75]


def _share(chosen: Tensor, among: Tensor) -> float:
    return chosen[among].double().mean().item() if among.any() else 0.0


def _values(model: nn.Module) -> dict[Any, Tensor]:
    """Return what is known of a model, nothing if it changed since."""
    state = _state(model)
    known = _known.get(model)
    if known is None or known.state != state:
        known = _known[model] = _Known(state)
    return known.values


def _state(model: nn.Module) -> str:
    """Return a hash of the weights, buffers and plain settings (e.g. the sampling temperature) of a model."""
    digest = hashlib.blake2b(digest_size=16)
    for name, module in model.named_modules():
        settings = {key: value for key, value in vars(module).items() if _is_plain(value)}
        digest.update(repr((name, sorted(settings.items()))).encode())
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(repr((key, tensor.dtype, tensor.shape)).encode())
            digest.update(flat.numpy())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple) or (is_dataclass(value) and not isinstance(value, type))
