"""Whether a backend has the capabilities that a recipe's objectives and evaluators ask for."""

from collections.abc import Sequence

from unlearn.errors import RecipeError, did_you_mean
from unlearn.models.base import CAPABILITIES
from unlearn.registry import names, resolve
from unlearn.schema import Recipe


def check_capabilities(recipe: Recipe, wrapper: type) -> None:
    """Refuse a pairing that cannot run, before any work. Raises RecipeError naming capability and backends."""
    parts = [
        (f"{group}={name}", term) for group in ("forget", "retain") for name, term in getattr(recipe, group).items()
    ]
    parts += [(f"evaluate.{name}", evaluator) for name, evaluator in recipe.evaluate.items()]
    if recipe.edit is not None:
        parts.append(("edit", recipe.edit))
    if recipe.data.asks_likelihood:
        _require("data: likelihood_quantile", ("likelihood",), wrapper)
    for part, component in parts:
        _require(part, component.needs, wrapper)


def has(wrapper: type, capability: str) -> bool:
    """Return whether a wrapper class has every method of a capability."""
    protocol = CAPABILITIES[capability]
    methods = [name for name in vars(protocol) if not name.startswith("_")]
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
