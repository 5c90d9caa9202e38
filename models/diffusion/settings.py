"""Settings of a diffusion model that diffusers' own files do not hold."""

import math
from dataclasses import dataclass

from unlearn.core.errors import RecipeError

LEAST_STEPS = 2
"""Fewest DDIM steps: a single one would be at t = 0, where the schedule has no noise, but start from pure noise."""


def check_steps(steps: int, timesteps: int, key: str, where: str = "") -> None:
    """Raise RecipeError where the number of DDIM steps is no whole number from 2 to T.

    Args:
        steps: the number.
        timesteps: T of the model.
        key: that sets it, for the message.
        where: words before the key.
    """
    if not isinstance(steps, int) or not LEAST_STEPS <= steps <= timesteps:
        raise RecipeError(
            f"{where}{key} is {steps!r}; the model has {timesteps} timesteps, and {LEAST_STEPS} to {timesteps} steps "
            f"are allowed. Type {key}={min(20, timesteps)}."
        )


@dataclass
class DiffusionSettings:
    """Settings that the files of diffusers do not hold.

    Args:
        shape: (C, H, W) of images.
        levels: number of grey levels of images.
        classes: names of the classes, in their order; None for a model that takes prompts.
        steps: DDIM steps per sample, from 2 to T.
        guidance: scale g of classifier-free guidance, >= 0; 1 is the conditional score alone (Ho and Salimans 2022
            write w = g - 1).
        drop: fraction of training items whose condition is dropped, in [0, 1].
        one_step: timestep from which a one-step generator samples; None for a diffusion model.
    """

    shape: tuple[int, ...]
    levels: int = 256
    classes: tuple[str, ...] | None = None
    steps: int = 20
    guidance: float = 2.0
    drop: float = 0.1
    one_step: int | None = None

    def __post_init__(self) -> None:
        self.shape = tuple(self.shape)  # both are lists in a file
        self.classes = tuple(self.classes) if self.classes is not None else None
        if len(self.shape) != 3 or not all(isinstance(side, int) and side > 0 for side in self.shape):
            raise ValueError(f"shape is {self.shape!r}; it must be three numbers above 0: channels, height, width")
        for name, whole, least in (("levels", self.levels, 2), ("one_step", self.one_step or 0, 0)):
            if not isinstance(whole, int) or whole < least:
                raise ValueError(f"{name} is {whole!r}; it must be a whole number of {least} or more")
        for name, value, most in (("guidance", self.guidance, math.inf), ("drop", self.drop, 1)):
            if not isinstance(value, int | float) or not 0 <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {most}")
