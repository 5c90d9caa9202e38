"""A mapping of subjects that lets no evaluator use a model after another was asked for."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch

from unlearn.evaluators.subjects import OneAtATime

CPU = torch.device("cpu")


class OneLives(OneAtATime[Any]):
    """Hands out copies; the former one loses its weights (to the meta device), so that using it fails on a CPU too.

    Args:
        load: subject -> returns its model.
        device: where the one subject is, by default the CPU.
    """

    most = 0
    """Largest number of copies with weights at once, over all mappings."""

    def __init__(self, load: Mapping[str, Callable[[], Any]], device: torch.device | None = None) -> None:
        super().__init__({subject: partial(self._copy, one) for subject, one in load.items()}, device or CPU)
        self.handed_out: list[Any] = []

    def __getitem__(self, subject: str) -> Any:
        model = super().__getitem__(subject)
        living = [one for one in self.handed_out if any(not t.is_meta for t in one.state_dict().values())]
        OneLives.most = max(OneLives.most, len(living))
        return model

    def _copy(self, load: Callable[[], Any]) -> Any:
        self.handed_out.append(deepcopy(load()))
        return self.handed_out[-1]

    def release(self) -> None:
        if self._current is not None:
            self._current[1].to("meta")
            self._current = None
