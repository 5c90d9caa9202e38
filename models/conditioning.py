"""Conditions of a denoiser: classes, prompts as tokens, or encoded prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Conditions of B items; exactly one of classes, tokens and states is given.

    Args:
        classes: (B,) int64.
        tokens: (B, E, L) int64, the prompt in the tokens of each of E text encoders.
        states: (B, L, D), encoded prompts.
        pooled: (B, P), one vector per prompt in addition to ``states``, for models that take it (SDXL).
    """

    classes: Tensor | None = None
    tokens: Tensor | None = None
    states: Tensor | None = None
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.classes, self.tokens, self.states)) != 1:
            raise ValueError("a condition is one of classes, tokens and states")

    @property
    def _parts(self) -> dict[str, Tensor]:
        return {name: part for name, part in vars(self).items() if part is not None}

    def __len__(self) -> int:
        return len(next(iter(self._parts.values())))

    def __getitem__(self, rows: Any) -> Self:
        """Return the conditions of some rows (a slice, a mask, or indices)."""
        return type(self)(**{name: part[rows] for name, part in self._parts.items()})

    def repeat(self, times: int) -> Self:
        """Return all conditions, repeated ``times`` times."""
        return type(self)(**{n: part.repeat(times, *[1] * (part.ndim - 1)) for n, part in self._parts.items()})

    def blank(self, rows: Tensor) -> Self:
        """Return the conditions with zeros where ``rows`` (B,) is true."""
        return type(self)(
            **{name: part.masked_fill(rows[:, *[None] * (part.ndim - 1)], 0) for name, part in self._parts.items()}
        )

    def detach(self) -> Self:
        """Return the conditions without gradient."""
        return type(self)(**{name: part.detach() for name, part in self._parts.items()})

    def to(self, device: torch.device) -> Self:
        """Return the conditions on a device."""
        return type(self)(**{name: part.to(device) for name, part in self._parts.items()})

    @classmethod
    def cat(cls, conditions: Sequence[Condition]) -> Condition:
        """Concatenate conditions of one kind."""
        kinds = {tuple(condition._parts) for condition in conditions}
        if len(kinds) != 1:
            raise ValueError(f"conditions of different kinds cannot be concatenated: {sorted(kinds)}")
        names = next(iter(kinds))
        return cls(**{name: torch.cat([condition._parts[name] for condition in conditions]) for name in names})
