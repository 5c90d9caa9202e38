"""What a guard is: something around a model that changes what it does and not its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from unlearn.data.base import Split
from unlearn.models.base import Wrapper
from unlearn.models.capabilities import M


@dataclass(frozen=True)
class Guard(ABC, Generic[M]):
    """Stands around the target when it is used, or around what objectives or an edit made of it."""

    @abstractmethod
    def __call__(self, model: M, splits: Mapping[str, Split]) -> Wrapper:
        """Return the guarded model: a model to whoever measures it, around the same weights."""
