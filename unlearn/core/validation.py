"""Checks that settings are in range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import ge, gt, le
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints


def at_least(settings: Any, **bounds: float) -> None:
    """Raise a ValueError for settings below their bound, or nan; None is allowed."""
    _compare(settings, ge, ">=", bounds)


def at_most(settings: Any, **bounds: float) -> None:
    """Raise a ValueError for settings above their bound, or nan; None is allowed."""
    _compare(settings, le, "<=", bounds)


def above(settings: Any, **bounds: float) -> None:
    """Raise a ValueError for settings at their bound or below, or nan; None is allowed."""
    _compare(settings, gt, ">", bounds)


def _compare(settings: Any, holds: Callable[[Any, float], bool], sign: str, bounds: Mapping[str, float]) -> None:
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not holds(value, bound):  # no comparison holds for nan
            raise ValueError(f"{name} is {value}; it must be {sign} {bound}")


def distinct(settings: Any, **bounds: float) -> None:
    """Raise a ValueError for lists of numbers that are empty, repeat one, or have one below the bound."""
    for name, bound in bounds.items():
        values = getattr(settings, name)
        if not values or min(values) < bound or len(set(values)) < len(values):
            raise ValueError(f"{name} is {values}; it must be different numbers, each >= {bound}")


class Range(NamedTuple):
    """Range of a setting, as metadata of its type: ``steps: Annotated[int, Range(at_least, 2)]``."""

    check: Callable[..., None]
    bound: float


PositiveInt = Annotated[int, Range(at_least, 1)]
NonNegativeInt = Annotated[int, Range(at_least, 0)]
PositiveFloat = Annotated[float, Range(above, 0)]
NonNegativeFloat = Annotated[float, Range(at_least, 0)]
UnitInterval = Annotated[float, Range(at_least, 0), Range(at_most, 1)]


def check_ranges(settings: object) -> None:
    """Raise a ValueError for settings of a dataclass outside of the ranges that their types state; None is allowed."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        for part in (hint, *get_args(hint)):  # the range of ``PositiveFloat | None`` is that of its first part
            for allowed in getattr(part, "__metadata__", ()):
                if isinstance(allowed, Range):
                    allowed.check(settings, **{name: allowed.bound})
