"""The noise schedule of a diffusion model, and deterministic DDIM along it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor, nn

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError
from unlearn.core.folders import read_mapping

PREDICTED = ("epsilon", "sample", "v_prediction")
"""What a network may predict, in the words of diffusers."""

SPACINGS = ("leading", "trailing", "linspace")
"""How the timesteps of a trajectory may be spaced, in the words of diffusers."""

REMEDY = "Schedulers that can be read are those of DDPM's noise: DDPM, DDIM, PNDM, Euler, DPM-Solver and the like."
"""Ends the message on another one."""


def read_scheduler(place: Path, made: str | None = None) -> Any:
    """Return the scheduler in a folder.

    Args:
        place: the scheduler's folder.
        made: name of its class; by default the folder says it.

    Raises:
        RecipeError: it cannot be read, or its class has another noise schedule than DDPM's.
    """
    path = place / "scheduler_config.json"
    if not path.is_file():
        raise RecipeError(f"{path} is missing. Copy the folder again.")
    stated = read_mapping(path).get("_class_name")
    found = None
    for name in (stated or made, made or stated):  # where they differ, diffusers takes the one of the index
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not isinstance(kind, type) or not issubclass(kind, SchedulerMixin):
            raise RecipeError(f"{path} is of a {str(name)[:100]}, which is no scheduler of diffusers. {REMEDY}")
        with reading(place, REMEDY):
            found = kind.from_pretrained(place)
        check_scheduler(found, str(place))
    return found


def check_scheduler(scheduler: Any, where: str = "The scheduler") -> None:
    """Refuse a scheduler whose noise is not x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps at every t of 0 ... T - 1."""
    config, name = scheduler.config, type(scheduler).__name__
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, Tensor) or alphas.ndim != 1:
        raise RecipeError(
            f"{where} is an {name}, which has no abar_t: its noise is not that of DDPM "
            f"(x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps at whole t). {REMEDY}"
        )
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTED:
        raise RecipeError(f"{where}: prediction_type is {kind!r}; it must be one of {', '.join(PREDICTED)}. {REMEDY}")
    for key, allowed in (("use_flow_sigmas", False), ("timestep_type", "discrete")):
        if (stated := config.get(key, allowed)) != allowed:
            raise RecipeError(
                f"{where} is an {name} with {key}: {stated}, which is another noise than its betas say. {REMEDY}"
            )
    if config.get("rescale_betas_zero_snr") or not bool((alphas > 0).all()):
        raise RecipeError(
            f"{where} ends at a signal of zero (rescale_betas_zero_snr, zero terminal SNR): there x_T is the noise "
            "itself, and what is computed here from the noise of a network says nothing of an image. "
            "Type model.pretrained=FOLDER of a pipeline that was trained with rescale_betas_zero_snr: false."
        )
    spacing = config.get("timestep_spacing", "leading")
    # diffusers' DDIM subtracts T // steps from t, which is the next t of its other spacings but not of this one
    if spacing not in SPACINGS or (spacing == "linspace" and "DDIM" in name):
        raise RecipeError(
            f"{where} is an {name} with timestep_spacing: {spacing}, whose steps do not lead from one of its timesteps "
            "to the next. Write leading or trailing in its scheduler_config.json."
        )
    falls = bool((alphas[1:] <= alphas[:-1]).all()) and bool((alphas < 1).all())
    if not falls or len(alphas) < 2 or len(alphas) != config.num_train_timesteps:
        raise RecipeError(
            f"{where}: its betas give {len(alphas)} values of abar_t, and {config.num_train_timesteps} that fall from "
            "below 1 to above 0 are needed. Mend num_train_timesteps, the betas or beta_schedule."
        )


class NoiseSchedule(nn.Module):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with abar_t from a scheduler of diffusers.

    Args:
        scheduler: its noise schedule and prediction type count; sampling is DDIM whatever its class.
    """

    alphas: Tensor
    """abar_t, (T,)."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        check_scheduler(scheduler)
        self.config = scheduler.config
        self.prediction = scheduler.config.get("prediction_type", "epsilon")
        self.stated: Tensor = scheduler.alphas_cumprod.clone()  # of the scheduler's own class and type, for DDIM
        self.register_buffer("alphas", self.stated.float(), persistent=False)

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sqrt(abar_t), sqrt(1 - abar_t)) of t (B,), each (B, 1, 1, 1), in the dtype of ``like``."""
        kept = self.alphas[t].to(like.dtype)[:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t of clean items and noise, both (B, C, H, W)."""
        signal, scale = self.scales(t, x0)  # Ho et al., DDPM, 2020, eq. 4
        return signal * x0 + scale * noise

    def denoised(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the x_0 that ``eps`` implies, (B, C, H, W)."""
        signal, scale = self.scales(t, x)
        return (x - scale * eps) / signal

    def eps(self, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return eps, (B, C, H, W), from what the network predicts of x_t."""
        if self.prediction == "epsilon":
            return raw
        signal, noise = self.scales(t, x)
        if self.prediction == "sample":  # x_t = signal x_0 + noise eps, solved for eps
            return (x - signal * raw) / noise
        # velocity v = signal eps - noise x_0 (Salimans and Ho 2022, appendix D): signal v + noise x_t = eps
        return signal * raw + noise * x

    def times(self, steps: int) -> Tensor:
        """Return the timesteps of a trajectory, (S,) int64, falling. Raises RecipeError where there is no such one."""
        timesteps: Tensor = self._ddim(steps, len(self.stated)).timesteps
        if int(timesteps[0]) >= len(self.stated):
            raise RecipeError(
                f"A trajectory of {steps} steps begins at t = {int(timesteps[0])}, by the scheduler's steps_offset; "
                f"the last timestep is {len(self.stated) - 1}. Type fewer steps, model.steps={steps // 2} say."
            )
        return timesteps.to(self.alphas.device)

    def trajectory(
        self, x: Tensor, steer: Callable[[int, Tensor, Tensor], Tensor], steps: int, first: int, clip: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the step, x after it) of deterministic DDIM.

        Args:
            x: state before step ``first``, (B, C, H, W).
            steer: (number of the step, x_t, t of (B,)) -> eps.
            steps: of the whole trajectory.
            first: step to begin with.
            clip: whether the implied x_0 is clipped to [-1, 1].

        Reference:
            Song et al., Denoising Diffusion Implicit Models, 2021, eq. 12 with sigma = 0. arXiv:2010.02502
        """
        times = self.times(steps).tolist()
        scheduler = self._ddim(steps, clip_sample=clip)
        scheduler.alphas_cumprod = self.stated[times[::-1]]
        for number, t in list(enumerate(times))[first:]:
            eps = steer(number, x, torch.full((len(x),), t, device=x.device))
            # the sampler counts the steps that are left, so that each leads to the next t whatever their distance;
            # a clipped x_0 needs the eps that belongs to it, or errors add up from step to step
            left = steps - 1 - number
            x = scheduler.step(eps, left, x, use_clipped_model_output=True, return_dict=False)[0]
            yield number, x

    def _ddim(self, steps: int, timesteps: int | None = None, clip_sample: bool = False) -> Any:
        """Return the sampler of so many steps, over all ``timesteps`` or, by default, over the steps alone.

        eps is converted before, whatever the network predicts; the last step leads to abar = 1, the clean item.
        """
        settings = {"prediction_type": "epsilon", "clip_sample": clip_sample, "set_alpha_to_one": True}
        scheduler = DDIMScheduler.from_config(self.config, num_train_timesteps=timesteps or steps, **settings)
        scheduler.set_timesteps(steps)
        return scheduler
