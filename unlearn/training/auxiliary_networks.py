"""Builds the phases of the auxiliary networks that terms train next to the model."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.objectives.base import AuxiliaryNetwork
from unlearn.training.phase import Phase


def auxiliary_networks(
    phase: Phase, model: nn.Module, teacher: Callable[[], Any], randomness: Randomness
) -> list[Phase]:
    """Return a phase for each network that a term of ``phase`` trains next to the model; they step before the model.

    Terms whose networks have the same name share one: the first builds it, and each adds its own losses.

    Args:
        phase: the model's phase.
        model: the trained model.
        teacher: see Context.teacher.
        randomness: of the networks' initial weights.

    Raises:
        RecipeError: two terms share a network and differ in how it is trained.
    """
    found: dict[str, Phase] = {}
    for group, name, objective in phase.terms():
        brought = objective.auxiliary(model, teacher, group, randomness.child(f"{group}/{name}"))
        if brought is None:
            continue
        optim = _optim(brought, phase.optim)
        if brought.name not in found:
            found[brought.name] = _phase(brought, optim)
        beside = found[brought.name]
        if (beside.optim, beside.warmup, beside.rests) != (optim, brought.warmup, brought.rests):
            first = {**asdict(beside.optim), "warmup": beside.warmup, "rests": beside.rests}
            other = {**asdict(optim), "warmup": brought.warmup, "rests": brought.rests}
            apart = [f"{key} {first[key]} and {other[key]}" for key in first if first[key] != other[key]]
            raise RecipeError(
                f"{beside.owners[0]} and {group}/{name} share the network {brought.name!r} and differ in how it is "
                f"trained: {', '.join(apart)}. Give both the same."
            )
        beside.owners = (*beside.owners, f"{group}/{name}")
        for split, terms in brought.groups.items():
            beside.groups.setdefault(split, {}).update({f"{name}_{inner}": term for inner, term in terms.items()})
    return list(found.values())


def _optim(auxiliary: AuxiliaryNetwork, primary: Optim) -> Optim:
    counted = {key: getattr(primary, key) for key in ("steps", "batch", "forget_batch", "accumulate")}
    return replace(auxiliary.optim(primary), **counted, ema=None)


def _phase(auxiliary: AuxiliaryNetwork, optim: Optim) -> Phase:
    network = auxiliary.build().eval()
    return Phase(
        {f"{auxiliary.name}.{key}": value for key, value in network.named_parameters() if value.requires_grad},
        {},
        optim,
        name=auxiliary.name,
        primary=False,
        network=network,
        warmup=auxiliary.warmup,
        rests=auxiliary.rests,
        file=auxiliary.file,
    )
