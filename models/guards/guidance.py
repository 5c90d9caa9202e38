"""Guards of diffusion models that steer the guidance of samples: negative guidance and Safe Latent Diffusion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from unlearn.config.structured import build
from unlearn.core.errors import RecipeError
from unlearn.data.base import Split
from unlearn.data.concept import Concept
from unlearn.models.base import Wrapper
from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.serialization import GUARD
from unlearn.models.diffusion.wrapper import Diffusion, Steering
from unlearn.models.guards.base import Guard

PAST_WARMUP = 2**31
"""Number of a step that lies behind every warm-up: of a score that is asked for outside of a trajectory."""


class Steers(Protocol):
    """Gives the scores of a trajectory."""

    @property
    def prompts(self) -> list[str]:
        """What must not be drawn."""

    def steering(self, model: Diffusion, guidance: float) -> Steering:
        """Return what gives eps at each step of one trajectory."""


class GuardedDiffusion(Diffusion):
    """A diffusion model whose samples a guard steers; ``predict``, and with it the training loss, is as it was.

    Args:
        model: whose weights it has; they are not copied.
        guard: what steers.
    """

    def __init__(self, model: Diffusion, guard: Steers) -> None:
        parts = (model.denoiser, model.scheduler, model.settings, model.text, model.vae, model.pipeline, model.extras)
        super().__init__(*parts)
        self.alphas = model.alphas
        self.guard = guard
        self.prompts(guard.prompts)  # refuses a class that the model does not know

    def guided(self, x: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
        """Return the steered eps, (B, C, H, W), as at a step behind the warm-up and without momentum."""
        return self.guard.steering(self, guidance)(PAST_WARMUP, x, t, condition)

    def steering(self, guidance: float) -> Steering:
        """Return what gives the steered eps at each step of one trajectory."""
        return self.guard.steering(self, guidance)

    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the unchanged model, which loads without the guard too, and ``guard.json``."""
        super().save_pretrained(folder, dtype)
        name = next(name for name, kind in GUARDS.items() if isinstance(self.guard, kind))
        content = {"name": name, **asdict(self.guard)}  # type: ignore[call-overload]
        (folder / GUARD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what ``save_pretrained`` wrote. Raises RecipeError where no guard is there."""
        model = Diffusion.from_pretrained(folder)
        if not isinstance(model, cls):
            raise RecipeError(f"{folder} holds a model without a guard: {GUARD} is not there.")
        return model


@dataclass(frozen=True)
class NegativeGuidance(Guard[Denoises]):
    """The concept takes the place of the empty condition: eps(c_f) + g (eps(c) - eps(c_f)).

    That is the usual guidance less (g - 1) (eps(c_f) - eps(c_n)); at g = 1 it does nothing and is refused. Of several
    prompts, or classes, the mean of the scores counts.

    Args:
        prompts: that ask for what must not be drawn; by default those of the data's concepts, one a template.

    Reference:
        Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, eq. 6, with a negative prompt in place of the empty
        condition, as pipelines of diffusers take it. arXiv:2207.12598
    """

    prompts: list[str] = field(default_factory=list)

    def __call__(self, model: Any, splits: Mapping[str, Split]) -> Wrapper:
        """Return the guarded model."""
        plain = _fitting(model, "negative_guidance")
        if plain.settings.guidance <= 1:
            raise RecipeError(
                "guard=negative_guidance changes guided samples, and the model's guidance is "
                f"{plain.settings.guidance:g}, which is none. Type model.guidance=2."
            )
        return GuardedDiffusion(plain, replace(self, prompts=self.prompts or _prompts(splits)))

    def steering(self, model: Diffusion, guidance: float) -> Steering:
        """Return what gives the steered eps."""
        scores = _Scores(model, model.prompts(self.prompts))

        def steer(number: int, x: Tensor, t: Tensor, told: Condition) -> Tensor:
            fixed, said = scores(x, t, told)
            unsafe = fixed.mean(dim=0)
            return unsafe + guidance * (said - unsafe)

        return steer


Level = Literal["weak", "medium", "strong", "max"]


@dataclass(frozen=True)
class SafeLatentDiffusion(Guard[Denoises]):
    """Guidance turned away from the concept where the prompt leads towards it, value by value.

    eps(c_n) + g (eps(c) - eps(c_n) - gamma_t)
    gamma_t = mu (eps(c_S) - eps(c_n)) + s_m nu_t, applied after the first ``warmup`` steps
    mu = min(1, s_S |eps(c) - eps(c_S)|) where eps(c) - eps(c_S) < lambda, and 0 elsewhere, value by value
    nu_{t+1} = beta_m nu_t + (1 - beta_m) gamma_t, from nu = 0 at the first step

    The authors join all concepts in one prompt; of several prompts, the mean of the scores counts here. With mu as
    above, nothing is turned away where the model is told c_S itself, as a model that is told classes is.

    Args:
        level: of the authors' four, which sets what is null below: (s_S, lambda, s_m, beta_m, warmup) is weak (200, 0,
            0, 0, 15), medium (1000, 0.01, 0.3, 0.4, 10), strong (2000, 0.025, 0.5, 0.7, 7), max (5000, 1, 0.5, 0.7, 0).
        scale: s_S, >= 0.
        threshold: lambda.
        momentum_scale: s_m, >= 0.
        momentum_beta: beta_m, in [0, 1).
        warmup: steps of a trajectory, not timesteps, before gamma_t is applied, >= 0. The levels' are for 50 steps.
        bound: ``above`` is mu as the authors' code has it, for which the levels were found; ``below`` takes max in
            place of min, as the paper's equation is printed, so that mu >= 1 wherever it is not 0: a scale for it is
            of the order of 1.
        prompts: that ask for what must not be drawn; by default those of the data's concepts, one a template.

    Reference:
        Schramowski et al., Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models, 2023,
        section 3. arXiv:2211.05105
    """

    level: Level = "medium"
    scale: float | None = None
    threshold: float | None = None
    momentum_scale: float | None = None
    momentum_beta: float | None = None
    warmup: int | None = None
    bound: Literal["above", "below"] = "above"
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("scale", "momentum_scale", "warmup"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; it must be >= 0, or null for that of the level")
        if self.momentum_beta is not None and not 0 <= self.momentum_beta < 1:
            raise ValueError(f"momentum_beta is {self.momentum_beta}; it must lie in [0, 1), or be null")

    def __call__(self, model: Any, splits: Mapping[str, Split]) -> Wrapper:
        """Return the guarded model."""
        return GuardedDiffusion(_fitting(model, "sld"), replace(self, prompts=self.prompts or _prompts(splits)))

    def settings(self) -> tuple[float, float, float, float, int]:
        """Return (s_S, lambda, s_m, beta_m, warmup)."""
        given = (self.scale, self.threshold, self.momentum_scale, self.momentum_beta, self.warmup)
        found = [usual if own is None else own for own, usual in zip(given, LEVELS[self.level], strict=True)]
        return (*found[:4], int(found[4]))  # type: ignore[return-value]

    def steering(self, model: Diffusion, guidance: float) -> Steering:
        """Return what gives the steered eps; it keeps the momentum of one trajectory."""
        scale, threshold, momentum_scale, beta, warmup = self.settings()
        scores = _Scores(model, Condition.cat([model.null(1), model.prompts(self.prompts)]))
        momentum: Tensor | float = 0.0

        def steer(number: int, x: Tensor, t: Tensor, told: Condition) -> Tensor:
            nonlocal momentum
            fixed, said = scores(x, t, told)
            empty, unsafe = fixed[0], fixed[1:].mean(dim=0)
            apart = said - unsafe
            size = scale * apart.abs()
            bounded = size.clamp(max=1.0) if self.bound == "above" else size.clamp(min=1.0)
            mu = torch.where(apart < threshold, bounded, 0.0)
            gamma = mu * (unsafe - empty) + momentum_scale * momentum
            momentum = beta * momentum + (1 - beta) * gamma
            return empty + guidance * (said - empty - (gamma if number >= warmup else 0.0))

        return steer


LEVELS: dict[Level, tuple[float, float, float, float, int]] = {
    "weak": (200.0, 0.0, 0.0, 0.0, 15),
    "medium": (1000.0, 0.01, 0.3, 0.4, 10),
    "strong": (2000.0, 0.025, 0.5, 0.7, 7),
    "max": (5000.0, 1.0, 0.5, 0.7, 0),
}
"""s_S, lambda, s_m, beta_m and warmup of each level of Safe Latent Diffusion."""

GUARDS: dict[str, type[NegativeGuidance] | type[SafeLatentDiffusion]] = {
    "negative_guidance": NegativeGuidance,
    "sld": SafeLatentDiffusion,
}
"""What ``guard.json`` may name."""


def read_guarded(model: Diffusion, folder: Path) -> GuardedDiffusion:
    """Return a model with the guard that stands in its folder. Raises RecipeError where the file is broken."""
    try:
        content = json.loads((folder / GUARD).read_text(encoding="utf-8"))
        guard = build(GUARDS[content.pop("name")], content, str(folder / GUARD)).value
        if not guard.prompts:
            raise ValueError("it has no prompts")
        return GuardedDiffusion(model, guard)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{folder / GUARD} names no guard that can be read ({error!r}).") from error


class _Scores:
    """Asks for the scores of a step in one forward pass; conditions that stay the same are encoded once."""

    def __init__(self, model: Diffusion, fixed: Condition) -> None:
        self.model, self.fixed = model, model.encode(fixed)

    def __call__(self, x: Tensor, t: Tensor, told: Condition) -> tuple[Tensor, Tensor]:
        """Return eps of the fixed conditions, (F, B, C, H, W), and of what the items are told, (B, C, H, W)."""
        rows = torch.arange(len(self.fixed), device=x.device).repeat_interleave(len(x))
        every = Condition.cat([self.fixed[rows], self.model.encode(told)])
        times = len(self.fixed) + 1
        found = self.model.predict(x.repeat(times, 1, 1, 1), t.repeat(times), every).unflatten(0, (times, len(x)))
        return found[:-1], found[-1]


def _fitting(model: Any, name: str) -> Diffusion:
    """Refuse a model whose samples have no guidance to be steered."""
    if not isinstance(model, Diffusion):
        raise RecipeError(f"guard={name} steers the samples of a diffusion model; this is a {type(model).__name__}.")
    if model.settings.one_step is not None:
        raise RecipeError(
            f"guard={name} steers the steps of samples, and a one-step generator has none. Type guard=null."
        )
    return model


def _prompts(splits: Mapping[str, Split]) -> list[str]:
    """Return the prompts of the data's concepts. Raises RecipeError where there is none."""
    concepts: list[Concept] = list(getattr(splits["forget"].dataset, "concepts", ()))
    if not concepts:
        raise RecipeError(
            "The data names no concept to guard. Type guard.prompts=[PROMPT], or data.concepts=[{name: NAME}]."
        )
    return [prompt for concept in concepts for prompt in concept.prompts()]
