"""The phases of networks that terms train beside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from unlearn.errors import RecipeError
from unlearn.objectives.base import Companion
from unlearn.phase import Phase
from unlearn.randomness import Randomness


def companions(phase: Phase, model: nn.Module, teacher: Callable[[], Any], randomness: Randomness) -> list[Phase]:
    """Return a phase for each network that a term of ``phase`` trains beside the model; each steps before it.

    Companions of one name are one network: the first builds it, and each brings its own terms.

    Args:
        phase: of the model.
        model: that moves.
        teacher: see Context.teacher.
        randomness: of the networks' first weights.

    Raises:
        RecipeError: two terms bring a network of one name and differ in how it moves.
    """
    found: dict[str, tuple[Companion, Phase]] = {}
    for group, name, objective in phase.terms():
        brought = objective.companion(model, teacher, randomness.child(f"{group}/{name}"))
        if brought is None:
            continue
        if brought.name not in found:
            found[brought.name] = (brought, _phase(brought, phase))
        first, beside = found[brought.name]
        if (brought.optim, brought.warmup) != (first.optim, first.warmup):
            raise RecipeError(
                f"{beside.owners[0]} and {group}/{name} train one network, {brought.name!r}, and differ in how it "
                f"moves: {first.optim}, warm-up {first.warmup}; {brought.optim}, warm-up {brought.warmup}. "
                "Give both the same."
            )
        beside.owners = (*beside.owners, f"{group}/{name}")
        for split, terms in brought.groups.items():
            beside.groups.setdefault(split, {}).update({f"{name}_{inner}": term for inner, term in terms.items()})
    return [beside for _, beside in found.values()]


def _phase(companion: Companion, primary: Phase) -> Phase:
    network = companion.build().eval()
    counted = {key: getattr(primary.optim, key) for key in ("steps", "batch", "forget_batch", "accumulate")}
    return Phase(
        {f"{companion.name}.{key}": value for key, value in network.named_parameters() if value.requires_grad},
        {},
        replace(companion.optim, **counted),
        name=companion.name,
        primary=False,
        network=network,
        warmup=companion.warmup,
    )
