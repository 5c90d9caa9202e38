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
