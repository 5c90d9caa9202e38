"""Errors, each with the exit code of the command line."""

import errno
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

MANY = 300
"""Largest number of names that a message lists."""


class UnlearnError(Exception):
    """A failure with one clear message: what was given, what is allowed, what to type."""

    exit_code = 1


class RecipeError(UnlearnError):
    """The recipe, the data or a file that it names is wrong. Nothing was written."""

    exit_code = 2


class NoGradient(RecipeError):
    """The first steps have no gradient, so nothing would be learned or forgotten."""


class Diverged(UnlearnError):
    """The loss or a weight is no longer finite. The last good state is kept."""


class GateFailed(UnlearnError):
    """The run ended, but a figure misses a threshold of the recipe.

    Args:
        message: one line per missed gate.
        result: the run's result, which is complete (unlearn.experiment.runner.Result).
    """

    exit_code = 3

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class EvaluationFailed(UnlearnError):
    """The run ended, but an evaluator raised an error; every other figure is there.

    Args:
        message: one line per evaluator.
        result: the run's result without those figures (unlearn.experiment.runner.Result).
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class Interrupted(UnlearnError):
    """The user stopped the run; the state is saved."""

    exit_code = 130


def did_you_mean(given: str, allowed: Iterable[str], near: Sequence[str] = ()) -> str:
    """Return ``Did you mean: a, b? `` if any name is near, then the allowed names, or their number if they are many.

    ``near`` holds what is meant, if the caller knows; otherwise the names of similar spelling are taken.
    """
    names = sorted(allowed)
    many = len(names) > MANY
    near = near or get_close_matches(given, names, n=5 if many else 3, cutoff=0.5)
    hint = f"Did you mean: {', '.join(near)}? " if near else ""
    return f"{hint}Allowed: {f'{len(names):,} names' if many else ', '.join(names) or 'none'}."


def shorten(value: object) -> str:
    """Return a value as messages show it, in at most about 80 characters."""
    text = repr(value) if value is not None else "null"
    return text if len(text) <= 80 else f"{text[:76]}..."


def some(names: Sequence[str]) -> str:
    """Return names as a message lists them: the first three, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def said(error: object) -> str:
    """Return what an error says; nothing where its own ``__str__`` fails."""
    try:
        return str(error)
    except (Exception, SystemExit):
        return ""


MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
"""Numbers of errors that the machine causes: no space, no permission."""


def is_of_the_machine(error: BaseException) -> bool:
    """Return whether the machine caused an error, not the program: no space, no permission.

    Libraries that write files say so in an error of their own, or raise one while they handle the machine's.
    """
    if isinstance(error, OSError) and error.errno in MACHINE:
        return True
    if isinstance(error, UnlearnError):
        return False
    if (named := re.search(r"\(os error ([0-9]+)\)", said(error))) and int(named[1]) in MACHINE:  # of safetensors
        return True
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return before is not None and is_of_the_machine(before)
