"""Checks that settings are in range."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from math import ceil
from operator import ge, gt, le
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


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
        for _, allowed in ranges(hint):
            allowed.check(settings, **{name: allowed.bound})


def smallest(settings: Settings, least: int, keep: Collection[str] = ()) -> Settings:
    """Return a copy of a dataclass whose counts are as small as the ranges of their types allow, and ``least`` or more.

    Counts are whole numbers, and lists of them, whose type states a lower bound. No number is made larger; None stays,
    and so do the settings named in ``keep``. A dataclass among the settings is treated likewise.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(settings) if field.name not in keep):
        value = getattr(settings, name)
        if is_dataclass(value) and not isinstance(value, type):
            found[name] = smallest(value, least, keep)
        for kind, allowed in ranges(hints[name]) if value else ():
            if kind is int and allowed.check is at_least:
                found[name] = min(value, max(least, ceil(allowed.bound)))
            elif kind == list[int] and allowed.check is distinct:
                found[name] = [min(max(value), max(least, ceil(allowed.bound)))]
    return replace(settings, **found)


def ranges(hint: Any) -> Iterator[tuple[Any, Range]]:
    """Yield the ranges that a type states, each with the type of what is in range."""
    for part in (hint, *get_args(hint)):  # the range of ``PositiveFloat | None`` is that of its first part
        if get_origin(part) is Annotated:
            yield from ((get_args(part)[0], allowed) for allowed in part.__metadata__ if isinstance(allowed, Range))
