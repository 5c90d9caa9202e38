"""Calls a user's objectives and combinations, and refuses what they return where it is not as their class promises."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unlearn.core.boundary import named, staying
from unlearn.core.errors import RecipeError
from unlearn.data.base import Batch
from unlearn.objectives.base import Context, Objective, ParameterObjective, Values
from unlearn.objectives.surgery import Combination, Gradient, State


def checked_values(term: Objective[Any], name: str, model: Any, batch: Batch, context: Context[Any]) -> Values:
    """Return a term's values of a batch. Raises RecipeError, with the term's name, where they are not as promised."""
    with staying():
        found = term(model, batch, context)
    items, kind = len(batch["id"]), f"{name} ({type(term).__name__})"
    if not isinstance(found, Values):
        raise RecipeError(f"{kind} returned a {type(found).__name__}; an objective returns Values(values=...).")
    values = found.values
    if not (isinstance(values, Tensor) and values.is_floating_point()):
        what = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise RecipeError(f"{kind}: Values.values is {what}; it must be a tensor of floats, one per item.")
    if values.device != batch["id"].device:
        raise RecipeError(f"{kind}: Values.values is on {values.device}, and the items are on {batch['id'].device}.")
    # only a statistic of the batch may have several values per item: elsewhere they would multiply the loss
    shape, allowed = tuple(values.shape), f"({items},)"
    if shape[:1] != (items,) or (values.dim() != 1 and not (term.over_batch and values.dim() == 2)):
        raise RecipeError(f"{kind}: Values.values has shape {shape}; for {items} items it must be {allowed}.")
    if not isinstance(found.diagnostics, Mapping):
        raise RecipeError(f"{kind}: Values.diagnostics is a {type(found.diagnostics).__name__}; it must be a mapping.")
    for key, value in found.diagnostics.items():
        if not isinstance(value, Tensor) or tuple(value.shape) not in ((), (items,)):
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RecipeError(f"{kind}: the diagnostic {key!r} is {shown}; it must have shape {allowed} or ().")
    return found


def checked_weight(term: Objective[Any], name: str, batch: Batch) -> Tensor:
    """Return a term's weight of each item. Raises RecipeError where it is not one number per item."""
    weight = term.sample_weight(batch)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != (len(batch["id"]),):
        shown = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise RecipeError(f"{name} ({type(term).__name__}): sample_weight is {shown}; it must be one number per item.")
    return weight


def checked_penalty(
    term: ParameterObjective[Any], name: str, parameters: Mapping[str, nn.Parameter], context: Context[Any]
) -> Tensor:
    """Return a term's penalty on the parameters. Raises RecipeError where it is not one number."""
    return _one_number(term.penalty(parameters, context), f"{name} ({type(term).__name__}): penalty")


def checked_statistic(term: Objective[Any], name: str, values: Tensor, weights: Tensor) -> Tensor:
    """Return a term's statistic of the values of a batch. Raises RecipeError where it is not one number."""
    return _one_number(term.reduce(values, weights), f"{name} ({type(term).__name__}): reduce")


def _one_number(found: object, who: str) -> Tensor:
    if not (isinstance(found, Tensor) and found.is_floating_point() and found.dim() == 0):
        shown = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise RecipeError(f"{who} returned {shown}; it must return one number, a tensor of shape ().")
    return found


def combine(
    rule: Combination, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()
) -> None:
    """Combine two gradients in place. Raises RecipeError for a rule that returns a result, which nobody would read."""
    shapes = [gradient.shape for gradient in retain]
    call: Callable[..., object] = rule
    found = call(forget, retain, state, samples)
    if found is not None:
        raise RecipeError(
            f"{named('combine', rule)} returned a {type(found).__name__}; it must overwrite ``retain`` and return None."
        )
    if [gradient.shape for gradient in retain if isinstance(gradient, Tensor)] != shapes:
        raise RecipeError(f"{named('combine', rule)} changed the shapes of ``retain``; it must overwrite its values.")
