"""Checks that settings are in range."""

from __future__ import annotations

from typing import Any


def at_least(settings: Any, **bounds: float) -> None:
    """Raise a ValueError for settings below their bound, or nan; None is allowed."""
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{name} is {value}; it must be >= {bound}")


def above(settings: Any, **bounds: float) -> None:
    """Raise a ValueError for settings at their bound or below, or nan; None is allowed."""
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not value > bound:
            raise ValueError(f"{name} is {value}; it must be > {bound}")


def distinct(settings: Any, **bounds: float) -> None:
    """Refuse lists of numbers that are empty, repeat one, or have one below the bound, with a ValueError."""
    for name, bound in bounds.items():
        values = getattr(settings, name)
        if not values or min(values) < bound or len(set(values)) < len(values):
            raise ValueError(f"{name} is {values}; it must be different numbers, each >= {bound}")
