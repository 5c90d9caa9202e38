"""Ranges of settings, refused in one wording."""

from __future__ import annotations

from typing import Any


def at_least(settings: Any, **bounds: float) -> None:
    """Refuse settings below their bound, or that are no number, with a ValueError; None is allowed."""
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{name} is {value}; it must be >= {bound}")


def above(settings: Any, **bounds: float) -> None:
    """Refuse settings at their bound or below, or that are no number, with a ValueError; None is allowed."""
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not value > bound:
            raise ValueError(f"{name} is {value}; it must be > {bound}")
