"""Models under evaluation, one at a time on the device."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Generic

import torch
from typing_extensions import TypeVar, override

from unlearn.models.capabilities import Model

Subject = TypeVar("Subject", bound=Model)


def precision_of(model: Model) -> torch.dtype:
    """Return what a model's outputs are rounded to: the narrowest float type of its parameters, float32 for none."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return min(types, key=lambda kind: kind.itemsize, default=torch.float32)


Content = tuple[str, torch.dtype, torch.Size, int] | str
"""Name, type, shape and checksum of a tensor; or the name of a method that a module has in place of its class's."""

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their bytes, as which tensors are summed."""
WIDTH = 4096
"""Numbers per row of the table whose rows and columns are summed."""


@torch.no_grad()
def contents(model: Model) -> list[Content]:
    """Return what tells whether a model was changed; a checksum is the same on every device."""
    whole = next(iter(model.modules()))  # the model itself is the first of its modules
    tensors = {name: value for name, value in whole.state_dict().items() if isinstance(value, torch.Tensor)}
    found: list[Content] = [(name, value.dtype, value.shape, _checksum(value)) for name, value in tensors.items()]
    for name, module in whole.named_modules():
        kind = type(module)
        found += [f"{name}.{key}" for key in vars(module) if callable(getattr(kind, key, None))]
    return found


def _checksum(value: torch.Tensor) -> int:
    if value.is_meta:
        return -1
    words = value.contiguous().flatten().view(WORDS[min(value.element_size(), 8)])
    whole = len(words) - len(words) % WIDTH
    rows = words[:whole].view(-1, WIDTH)
    # both ways, so that numbers which change places are seen, too
    sums = rows.sum(dim=0, dtype=torch.int64), rows.sum(dim=1, dtype=torch.int64), words[whole:].to(torch.int64)
    return hash(tuple(torch.cat(sums).tolist()))


class OneAtATime(Mapping[str, Subject], Generic[Subject]):
    """Subjects of an evaluation, of which only the last one requested is on the device.

    A subject is returned in eval mode, and each of its tensors keeps its type. The previous one is first
    moved back to the CPU, in place: code that still holds it must request it again before using it.

    Args:
        load: subject -> returns its model, always the same object.
        device: where the current subject lives.
    """

    def __init__(self, load: Mapping[str, Callable[[], Subject]], device: torch.device) -> None:
        self._load, self._device = load, device
        self._current: tuple[str, Subject] | None = None
        self._contents: dict[str, list[Content]] = {}
        self._changed: str | None = None

    @override
    def __getitem__(self, subject: str) -> Subject:
        if self._current is None or self._current[0] != subject:
            load = self._load[subject]
            self.release()
            model = load().eval()
            self._current = subject, model.to(self._device)
            if subject not in self._contents:
                self._contents[subject] = contents(self._current[1])
        return self._current[1].eval()

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._load)

    @override
    def __len__(self) -> int:
        return len(self._load)

    @override
    def __contains__(self, subject: object) -> bool:
        return subject in self._load  # Mapping's own would load the model

    def changed(self) -> str | None:
        """Return a subject whose tensors are no longer what they were when it was first requested, None for none."""
        if self._changed is None and self._current is not None:
            subject, model = self._current
            self._changed = subject if contents(model) != self._contents[subject] else None
        return self._changed

    def release(self) -> None:
        """Move the current subject off the device; the next request brings one back."""
        if self._current is not None:
            if self.changed() is None:  # what was changed may be on no device
                self._current[1].to("cpu")
            self._current = None


def trainable_copy(models: Mapping[str, Subject], subject: str) -> Subject:
    """Return a trainable copy of a subject for an attack, which takes the subject's place on the device.

    It is in float32 at least: half precision would lose small steps.
    """
    model = models[subject]
    made = copy.deepcopy(model).requires_grad_(True)
    if isinstance(models, OneAtATime):
        models.release()
    return made.to(torch.float32) if precision_of(made).itemsize < 4 else made
