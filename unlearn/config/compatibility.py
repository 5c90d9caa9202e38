"""Whether a backend has the capabilities that a recipe's objectives and evaluators ask for."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from inspect import get_annotations
from typing import Any, ForwardRef, get_args

from typing_extensions import get_protocol_members

from unlearn.config.registry import names, resolve
from unlearn.config.schema import Recipe
from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.evaluators.base import Evaluator
from unlearn.models.capabilities import CAPABILITIES, HasLikelihood
from unlearn.models.scope import All
from unlearn.objectives.base import ParameterObjective


def check_capabilities(recipe: Recipe, wrapper: type) -> None:
    """Refuse a pairing that cannot run, before any work. Raises RecipeError naming capability and backends."""
    parts = [
        (f"{group}={name}", term) for group in ("forget", "retain") for name, term in getattr(recipe, group).items()
    ]
    parts += [(f"evaluate.{name}", evaluator) for name, evaluator in recipe.evaluate.items()]
    parts += [(f"distil={name}", term) for name, term in recipe.distil_by.items()]
    parts += [(key, part) for key, part in (("edit", recipe.edit), ("guard", recipe.guard)) if part is not None]
    if recipe.edit is not None and not isinstance(recipe.scope, All):
        raise RecipeError(
            f"edit={recipe.tree['edit']['name']} decides itself what it changes, and scope="
            f"{recipe.tree['scope']['name']} would have no effect. Type scope=all."
        )
    if recipe.asks_likelihood:
        _require("data: likelihood_quantile", HasLikelihood, wrapper)
    for part, component in parts:
        for protocol in protocols_of(type(component)):
            _require(part, protocol, wrapper)
    if recipe.combine.per_sample:
        _check_samples(recipe)


def check_subjects(recipe: Recipe, in_memory: bool = False) -> None:
    """Refuse evaluators that compare with a model that the run does not have. Raises RecipeError with the remedy.

    Args:
        recipe: what to do.
        in_memory: whether the caller passes the target as a model in memory; it is used unchanged.
    """
    if in_memory and recipe.corrupt is not None:
        raise RecipeError(
            "corrupt makes the target from a clean model, and the target is given as a model in memory. "
            "Give the clean model's folder (model.pretrained=FOLDER), or write corrupt=null."
        )
    if in_memory and recipe.distil is not None:
        raise RecipeError(
            "distil makes the target from a teacher, and the target is given as a model in memory. Give the teacher's "
            "folder (model.pretrained=FOLDER) and the target's (distil.pretrained=FOLDER), or write distil=null."
        )
    if recipe.distil is not None and recipe.corrupt is not None:
        raise RecipeError("distil and corrupt both make the target. Take one: distil=null or corrupt=null.")
    ways = {
        "teacher": (recipe.distil is not None, "Give the part distil (distil=OBJECTIVE)"),
        "clean": (recipe.corrupt is not None, "Give the part corrupt (corrupt.optim.steps=100, say)"),
        "retrained": (
            bool(recipe.model.retrained)
            or (not in_memory and recipe.model.pretrained is None and recipe.pretrain.retrained),
            "Type model.retrained=FOLDER",
        ),
    }
    for name, evaluator in recipe.evaluate.items():
        for subject in evaluator.subjects:
            there, remedy = ways.get(subject, (True, ""))
            if not there:
                raise RecipeError(
                    f"evaluate.{name} compares with the {subject} model, and the run has none. {remedy}, or drop it: "
                    f"evaluate.{name}=null."
                )


def measured_by(figure: str, metric: str, evaluator: str, evaluate: Mapping[str, Evaluator[Any]]) -> str:
    """Return the entry of ``evaluate`` that measures a figure, "" if any may; refuse an ambiguous or unknown one.

    Args:
        figure: key of the setting that needs it, such as ``gate.NAME``, for messages.
        metric: the figure's metric.
        evaluator: the entry asked for, empty for none.
        evaluate: the recipe's evaluators.
    """
    if evaluator and evaluator not in evaluate:
        raise RecipeError(f"{figure}.evaluator is {evaluator!r}. {did_you_mean(evaluator, evaluate)}")
    able = [key for key, entry in evaluate.items() if any(one.matches(metric) for one in type(entry).metrics)]
    if not evaluator and len(able) > 1:
        raise RecipeError(
            f"{figure}.metric is {metric}, and several entries of evaluate give it; write {figure}.evaluator=NAME. "
            f"Allowed: {', '.join(able)}."
        )
    return evaluator or next(iter(able), "")


def check_declared(figure: str, metric: str, evaluator: str, evaluate: Mapping[str, Evaluator[Any]]) -> None:
    """Refuse a figure that no entry of ``evaluate`` declares; arguments as in ``measured_by``."""
    entries = [evaluate[evaluator]] if evaluator else list(evaluate.values())
    metrics = [one for entry in entries for one in type(entry).metrics]
    # packaged evaluators declare all that they give; a plug-in may declare none
    known = all(type(entry).metrics or type(entry).__module__.startswith("unlearn.") for entry in entries)
    if entries and known and not any(one.matches(metric) for one in metrics):
        where = f"evaluate.{evaluator} does not give" if evaluator else "no entry of evaluate gives"
        raise RecipeError(
            f"{figure}.metric is {metric!r}, which {where}. {did_you_mean(metric, [one.name for one in metrics])}"
        )


def _check_samples(recipe: Recipe) -> None:
    """Refuse retain terms without a value per item if the combination needs the gradient of each item."""
    combine, terms = recipe.tree["combine"]["name"], recipe.retain
    whole = [name for name, term in terms.items() if term.over_batch]
    if whole or all(isinstance(term, ParameterObjective) for term in terms.values()):
        reason = "a statistic of the whole batch" if whole else "over parameters, not items"
        raise RecipeError(
            f"combine={combine} takes the gradient of each retain item alone, and retain={(whole or list(terms))[0]} "
            f"is {reason}. Type another objective (retain=training_loss), or combine=pcgrad."
        )


def protocols_of(component: type) -> list[type]:
    """Return what a class and its bases ask of a model: protocols as type arguments, or else in ``__call__``."""
    found: list[type] = []
    for cls in component.__mro__:
        for argument in (one for base in cls.__dict__.get("__orig_bases__", ()) for one in get_args(base)):
            if isinstance(argument, ForwardRef):  # Objective["Denoises"]
                argument = getattr(sys.modules[cls.__module__], argument.__forward_arg__, None)
            argument = getattr(argument, "__bound__", argument)  # a type variable asks for its bound
            if getattr(argument, "_is_protocol", False) and argument not in found:
                found.append(argument)
    if not found and "__call__" in vars(component):
        with suppress(NameError):  # a name that is imported for type checkers only
            taken = get_annotations(vars(component)["__call__"], eval_str=True).get("model")
            found += [taken] if isinstance(taken, type) and getattr(taken, "_is_protocol", False) else []
    return found


def capabilities_of(component: type) -> tuple[str, ...]:
    """Return the names of what a class asks for: ``likelihood`` for an ``Objective[HasLikelihood]``, none if bare."""
    asked = {protocol for one in protocols_of(component) for protocol in one.__mro__}
    return tuple(name for name, protocol in CAPABILITIES.items() if protocol in asked)


def fits(wrapper: type, protocol: type) -> bool:
    """Return whether a wrapper class has every method and attribute of a protocol."""
    return not _lacking(wrapper, protocol)


def has(wrapper: type, capability: str) -> bool:
    """Return whether a wrapper class has every method and attribute of a capability."""
    return fits(wrapper, CAPABILITIES[capability])


def _lacking(wrapper: type, protocol: type) -> list[str]:
    """Return the members of a protocol, inherited ones included, that a wrapper class neither has nor annotates."""
    annotated = {name for cls in wrapper.__mro__ for name in get_annotations(cls)}
    return sorted(
        name for name in get_protocol_members(protocol) if name not in annotated and not hasattr(wrapper, name)
    )


def _backend_has(name: str, protocol: type) -> bool:
    """Return whether a registered backend fits a protocol; False if its packages are not installed."""
    try:
        return fits(resolve("model", name).wrapper, protocol)
    except RecipeError:
        return False


def _require(part: str, protocol: type, wrapper: type) -> None:
    """Refuse a wrapper that lacks a member of the protocol, naming the capability it belongs to."""
    lacking = _lacking(wrapper, protocol)
    if not lacking:
        return
    named = (name for name, known in CAPABILITIES.items() if known in protocol.__mro__ and not has(wrapper, name))
    capability = next(named, None)
    what = f"the capability {capability!r}" if capability else ", ".join(lacking)
    backends = [name for name in names("model") if _backend_has(name, protocol)]
    raise RecipeError(
        f"{part} asks for {what}, which {wrapper.__name__} lacks. "
        f"Backends that have it: {', '.join(backends) or 'none'}. Type model=NAME with one of them, or take {part} out."
    )
