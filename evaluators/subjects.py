"""Models under evaluation, one at a time on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Generic

import torch
from typing_extensions import TypeVar, override

from unlearn.models.capabilities import Model

Subject = TypeVar("Subject", bound=Model)


def precision_of(model: Model) -> torch.dtype:
    """Return a model's own precision: the widest float type among its parameters, float32 where it has none."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return max(types, key=lambda kind: kind.itemsize, default=torch.float32)


class OneAtATime(Mapping[str, Subject], Generic[Subject]):
    """Subjects of an evaluation, of which only the one asked for last is on the device.

    A subject that is asked for comes in eval mode and in its own precision. The one before it goes back to the CPU
    first, in place: whoever still holds it asks for it again before using it.

    Args:
        load: subject -> returns its model, always the same object.
        device: where the one subject is.
    """

    def __init__(self, load: Mapping[str, Callable[[], Subject]], device: torch.device) -> None:
        self._load, self._device = load, device
        self._current: tuple[str, Subject] | None = None

    @override
    def __getitem__(self, subject: str) -> Subject:
        if self._current is None or self._current[0] != subject:
            load = self._load[subject]
            self.release()
            model = load().eval()
            self._current = subject, model.to(device=self._device, dtype=precision_of(model))
        return self._current[1]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._load)

    @override
    def __len__(self) -> int:
        return len(self._load)

    @override
    def __contains__(self, subject: object) -> bool:
        return subject in self._load  # Mapping's own would load the model

    def release(self) -> None:
        """Leave the device to others; the next request brings a subject back."""
        if self._current is not None:
            self._current[1].to("cpu")
            self._current = None


def in_their_place(
    models: Mapping[str, Subject], name: str, other: Subject, device: torch.device
) -> Mapping[str, Subject]:
    """Return a mapping of one other model, which is on the device in place of the subjects."""
    if isinstance(models, OneAtATime):
        models.release()
    return OneAtATime({name: lambda: other}, device)


def trainable_copy(model: Subject) -> Subject:
    """Return a copy that an attack may train; half precision would lose its small steps, so it becomes float32."""
    made = copy.deepcopy(model).requires_grad_(True)
    return made.to(torch.float32) if precision_of(model).itemsize < 4 else made
