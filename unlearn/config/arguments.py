"""Command-line arguments of runs and studies: a name, settings ``key=value`` and flags."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from unlearn.core.errors import RecipeError, did_you_mean, shorten


class Arguments(NamedTuple):
    """A command line, sorted.

    Attributes:
        name: the argument without ``=``, or None.
        settings: the ``key=value`` arguments, in order.
        flags: flag -> its value, empty for a flag that takes none.
    """

    name: str | None
    settings: list[str]
    flags: dict[str, str]


def sort(arguments: Sequence[str], flags: Collection[str], with_value: Collection[str] = ()) -> Arguments:
    """Sort a command line. Raises RecipeError for an unknown flag, a flag without its value, or a second name."""
    found = Arguments(None, [], {})
    rest = iter(arguments)
    for argument in rest:
        if argument in with_value:
            value = next(rest, "")
            if not value or value.startswith("-"):
                raise RecipeError(f"{argument} has no value; write {argument} VALUE.")
            found.flags[argument] = value
        elif argument.startswith("-"):
            if argument not in flags:
                near = did_you_mean(argument, [*flags, *with_value])
                raise RecipeError(f"there is no flag {argument}. {near} Settings are written key=value.")
            found.flags[argument] = ""
        elif argument and "=" not in argument and found.name is None:
            found = found._replace(name=argument)
        else:
            split(argument)
            found.settings.append(argument)
    return found


def split(setting: str) -> tuple[str, str]:
    """Return key and value of ``key=value``. Raises RecipeError for anything else."""
    key, equals, value = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{shorten(setting)} is no setting; write key=value, such as optim.lr=1e-4.")
    return key, value.strip()


def take(settings: Sequence[str], own: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings under a command's own keys, each given once with a value, and all others as they are."""
    taken: dict[str, str] = {}
    others = []
    for setting in settings:
        key, value = split(setting)
        if key not in own:
            others.append(setting)
        elif key in taken or not value:
            raise RecipeError(f"{key}= is given {'twice' if key in taken else 'without a value'}; write {key}=VALUE.")
        else:
            taken[key] = value
    return taken, others
