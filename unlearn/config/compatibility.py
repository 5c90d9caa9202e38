"""Whether a backend has the capabilities that a recipe's objectives and evaluators ask for."""

from collections.abc import Sequence

from unlearn.config.registry import names, resolve
from unlearn.config.schema import Recipe
from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.models.capabilities import CAPABILITIES, capabilities_of
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
    if recipe.data.asks_likelihood:
        _require("data: likelihood_quantile", ("likelihood",), wrapper)
    for part, component in parts:
        _require(part, capabilities_of(type(component)), wrapper)
    if recipe.combine.per_sample:
        _check_samples(recipe)


def check_subjects(recipe: Recipe, in_memory: bool = False) -> None:
    """Refuse evaluators that compare with a model that the run does not have. Raises RecipeError with the remedy.

    Args:
        recipe: what to do.
        in_memory: whether the target is given as a model in memory, which is taken as it is.
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


def _check_samples(recipe: Recipe) -> None:
    """Refuse retain terms without a value of one item alone, for a combination that takes each item's gradient."""
    combine, terms = recipe.tree["combine"]["name"], recipe.retain
    whole = [name for name, term in terms.items() if term.over_batch]
    if whole or all(isinstance(term, ParameterObjective) for term in terms.values()):
        reason = "a statistic of the whole batch" if whole else "over parameters, not items"
        raise RecipeError(
            f"combine={combine} takes the gradient of each retain item alone, and retain={(whole or list(terms))[0]} "
            f"is {reason}. Type another objective (retain=training_loss), or combine=pcgrad."
        )


def has(wrapper: type, capability: str) -> bool:
    """Return whether a wrapper class has every method of a capability."""
    protocol = CAPABILITIES[capability]
    methods = [name for name, member in vars(protocol).items() if callable(member) and not name.startswith("_")]
    return all(callable(getattr(wrapper, name, None)) for name in methods)


def _backend_has(name: str, capability: str) -> bool:
    """Return whether a registered backend has a capability; not where its packages are not installed."""
    try:
        return has(resolve("model", name).wrapper, capability)
    except RecipeError:
        return False


def _require(part: str, needs: Sequence[str], wrapper: type) -> None:
    for capability in needs:
        if capability not in CAPABILITIES:
            raise RecipeError(
                f"{part} asks for the unknown capability {capability!r}. {did_you_mean(capability, CAPABILITIES)}"
            )
        if not has(wrapper, capability):
            backends = [name for name in names("model") if _backend_has(name, capability)]
            raise RecipeError(
                f"{part} asks for the capability {capability!r}, which {wrapper.__name__} lacks. "
                f"Backends that have it: {', '.join(backends) or 'none'}. Type model=NAME with one of them, or take "
                f"{part} out."
            )
