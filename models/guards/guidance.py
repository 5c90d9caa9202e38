"""Guards of diffusion models that steer the guidance of samples: negative guidance and Safe Latent Diffusion."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError, shorten
from unlearn.core.shown import no_character
from unlearn.data.base import Split
from unlearn.data.concept import Concept
from unlearn.models.base import Wrapper
from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition
from unlearn.models.guards.base import Guard, Guidable, Steering, Steers

GUARD = "guard.json"
"""File of a guard, next to those of the unchanged model."""

PAST_WARMUP = 2**31
"""A step number past every warm-up, for scores outside a trajectory."""


@dataclass(frozen=True)
class NegativeGuidance(Guard[Guidable]):
    """The concept c_f replaces the empty condition: eps(c_f) + g (eps(c) - eps(c_f)).

    This is the usual guidance minus (g - 1) (eps(c_f) - eps(c_n)); at g = 1 it does nothing and is refused. With
    several prompts or classes, eps(c_f) is the mean of their scores.

    Args:
        prompts: for what must not be drawn; by default those of the data's concepts, one per template.

    Reference:
        Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, eq. 6, with a negative prompt in place of the empty
        condition, as pipelines of diffusers take it. arXiv:2207.12598
    """

    prompts: list[str] = field(default_factory=list)

    @override
    def __call__(self, model: Guidable, splits: Mapping[str, Split]) -> Wrapper:
        _check_fits(model, "negative_guidance")
        if model.settings.guidance <= 1:
            raise RecipeError(
                "guard=negative_guidance changes guided samples, and the model's guidance is "
                f"{model.settings.guidance:g}, which is none. Type model.guidance=2."
            )
        return model.guarded(replace(self, prompts=self.prompts or _prompts(splits)))

    def steering(self, model: Denoises, guidance: float) -> Steering:
        """Return the function that gives the steered eps of a step."""
        scores = _Scores(model, model.prompts(self.prompts))

        def steer(number: int, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            fixed, conditional = scores(x, t, condition)
            unsafe = fixed.mean(dim=0)  # eps(c_f)
            return unsafe + guidance * (conditional - unsafe)

        return steer


Level = Literal["weak", "medium", "strong", "max"]


@dataclass(frozen=True)
class SafeLatentDiffusion(Guard[Guidable]):
    """Guidance turned away from the concept where the prompt leads towards it, value by value.

    eps(c_n) + g (eps(c) - eps(c_n) - gamma_t)
    gamma_t = mu (eps(c_S) - eps(c_n)) + s_m nu_t, applied after the first ``warmup`` steps
    mu = min(1, s_S |eps(c) - eps(c_S)|) where eps(c) - eps(c_S) < lambda, and 0 elsewhere, value by value
    nu_{t+1} = beta_m nu_t + (1 - beta_m) gamma_t, from nu = 0 at the first step

    The authors join all concepts in one prompt; here eps(c_S) is the mean over several prompts. With mu as above, the
    guidance is unchanged where the condition is c_S itself, as in a model conditioned on classes.

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
        prompts: for what must not be drawn; by default those of the data's concepts, one per template.

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
        for name, allowed in (("level", LEVELS), ("bound", ("above", "below"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("scale", "threshold", "momentum_scale", "warmup", "momentum_beta"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"{name} is {value!r}; it must be a number, or null for the level's")
            if value is not None and not abs(value) < math.inf:
                raise ValueError(f"{name} is {value}; it must be finite, or null for the level's")
            if name != "threshold" and value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; it must be >= 0, or null for the level's")
        if self.momentum_beta is not None and not self.momentum_beta < 1:
            raise ValueError(f"momentum_beta is {self.momentum_beta}; it must lie in [0, 1), or be null")

    @override
    def __call__(self, model: Guidable, splits: Mapping[str, Split]) -> Wrapper:
        _check_fits(model, "sld")
        return model.guarded(replace(self, prompts=self.prompts or _prompts(splits)))

    def settings(self) -> tuple[float, float, float, float, int]:
        """Return (s_S, lambda, s_m, beta_m, warmup)."""
        given = (self.scale, self.threshold, self.momentum_scale, self.momentum_beta, self.warmup)
        found = [usual if own is None else own for own, usual in zip(given, LEVELS[self.level], strict=True)]
        return (*found[:4], int(found[4]))  # type: ignore[return-value]

    def steering(self, model: Denoises, guidance: float) -> Steering:
        """Return the function that gives the steered eps of a step; it keeps the momentum of one trajectory."""
        scale, threshold, momentum_scale, beta, warmup = self.settings()
        scores = _Scores(model, Condition.cat([model.null(1), model.prompts(self.prompts)]))
        momentum: Tensor | float = 0.0

        def steer(number: int, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            nonlocal momentum
            fixed, conditional = scores(x, t, condition)
            empty, unsafe = fixed[0], fixed[1:].mean(dim=0)
            apart = conditional - unsafe  # where it is below lambda, the prompt leads towards the concept
            size = scale * apart.abs()
            bounded = size.clamp(max=1.0) if self.bound == "above" else size.clamp(min=1.0)
            mu = torch.where(apart < threshold, bounded, 0.0)
            # nu_0 = 0, and nu is updated during warm-up too, though gamma is not applied then
            gamma = mu * (unsafe - empty) + momentum_scale * momentum
            momentum = beta * momentum + (1 - beta) * gamma
            return empty + guidance * (conditional - empty - (gamma if number >= warmup else 0.0))

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
"""Guards by the name in ``guard.json``."""


def write_guard(guard: Steers, folder: Path) -> None:
    """Write ``guard.json`` into an existing folder."""
    name = next(name for name, kind in GUARDS.items() if isinstance(guard, kind))
    content = {"name": name, **asdict(guard)}  # type: ignore[call-overload]
    (folder / GUARD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_guard(folder: Path) -> Steers | None:
    """Return the guard in a model's folder, None where there is none. Raises RecipeError where its file is broken."""
    path = folder / GUARD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        guard = GUARDS[content.pop("name")](**content)
        prompts = guard.prompts
        texts = isinstance(prompts, list) and all(isinstance(one, str) and not no_character(one) for one in prompts)
        if not prompts or not texts:
            raise ValueError(f"prompts is {shorten(prompts)}; it must be a list of texts")
        return guard
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path} holds no guard that can be read ({error!r}). Copy the folder again, or type guard=NAME anew."
        ) from error


class _Scores:
    """Computes the scores of a step in one forward pass; the fixed conditions are encoded once."""

    def __init__(self, model: Denoises, fixed: Condition) -> None:
        self.model, self.fixed = model, model.encode(fixed)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return eps of the fixed conditions, (F, B, C, H, W), and of the items' own conditions, (B, C, H, W)."""
        rows = torch.arange(len(self.fixed), device=x.device).repeat_interleave(len(x))
        every = Condition.cat([self.fixed[rows], self.model.encode(condition)])
        times = len(self.fixed) + 1
        found = self.model.predict(x.repeat(times, 1, 1, 1), t.repeat(times), every).unflatten(0, (times, len(x)))
        return found[:-1], found[-1]


def _check_fits(model: object, name: str) -> None:
    """Raise RecipeError for a model without guidance to steer."""
    if not isinstance(model, Guidable):
        raise RecipeError(f"guard={name} steers the samples of a diffusion model; this is a {type(model).__name__}.")
    if model.settings.one_step is not None:
        raise RecipeError(f"guard={name} steers steps of samples, and a one-step generator has none. Type guard=null.")


def _prompts(splits: Mapping[str, Split]) -> list[str]:
    """Return the prompts of the data's concepts. Raises RecipeError where there is none."""
    concepts: Sequence[Concept] = getattr(splits["forget"].dataset, "concepts", ())
    if not concepts:
        raise RecipeError(
            "The data names no concept to guard. Type guard.prompts=[PROMPT], or data.concepts=[{name: NAME}]."
        )
    return [prompt for concept in concepts for prompt in concept.prompts()]
