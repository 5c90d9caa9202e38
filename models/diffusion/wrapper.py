"""The wrapper around a denoiser of diffusers: scores, samples, training loss, save and load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.utils.logging import disable_progress_bar, set_verbosity_error
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar as disable_bar_of_transformers
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.float_types import round_to
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset
from unlearn.data.conditioned import Classes, Conditioned, Prompts
from unlearn.models.base import Wrapper
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.autoencoder import from_latents, latent_shape, to_latents
from unlearn.models.diffusion.denoiser import Denoiser, call_denoiser
from unlearn.models.diffusion.parameter_kinds import parameter_kinds
from unlearn.models.diffusion.pipeline import PipelineFolder
from unlearn.models.diffusion.recall import recall
from unlearn.models.diffusion.schedule import NoiseSchedule
from unlearn.models.diffusion.serialization import DiffusionParts, read_parts, write_adapter, write_parts
from unlearn.models.diffusion.settings import DiffusionSettings
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.guards.base import Steering, Steers
from unlearn.models.guards.guidance import PAST_WARMUP, read_guard, write_guard
from unlearn.models.lora import Adapter

disable_progress_bar()  # a run shows one bar, its own
set_verbosity_error()  # diffusers warns of every cast to half precision
disable_bar_of_transformers()

NOTHING = -1
"""Replaces every token of the null condition where that is zeros, not the empty prompt (see PipelineFolder)."""


class Diffusion(Wrapper):
    """A denoiser with its noise schedule and, where it has them, text encoders and an autoencoder.

    Whatever the network predicts (noise, image or velocity), every method here speaks of the noise eps in
    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. Images are mapped to [-1, 1], or to latents by the autoencoder.

    Args:
        denoiser, scheduler, settings, text, vae, pipeline, saved: see DiffusionParts.
        guard: steers the guidance of samples; ``predict``, and with it the training loss, stays as it is.
    """

    family: ClassVar[str] = "diffusion"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "class")

    recall = recall

    denoiser: Any
    text: TextSide | None
    vae: Any
    settings: DiffusionSettings

    def __init__(
        self,
        denoiser: Denoiser,
        scheduler: Any,
        settings: DiffusionSettings,
        text: TextSide | None = None,
        vae: nn.Module | None = None,
        pipeline: PipelineFolder | None = None,
        saved: dict[str, dict[str, torch.dtype]] | None = None,
        guard: Steers | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.text, self.vae, self.pipeline = denoiser, text, vae, pipeline
        self.scheduler, self.schedule = scheduler, NoiseSchedule(scheduler)
        self.settings, self.guard, self.saved_parts = settings, guard, saved or {}
        if guard is not None:
            self.prompts(guard.prompts, whole=True)  # refuses a class that the model does not know
        self.eval()

    def parts(self) -> DiffusionParts:
        """Return the components, which are not copied."""
        return DiffusionParts(
            self.denoiser, self.scheduler, self.settings, self.text, self.vae, self.pipeline, self.saved_parts
        )

    def guarded(self, guard: Steers) -> Diffusion:
        """Return a model with these components, not copies, whose samples the guard steers."""
        model = Diffusion(**vars(self.parts()), guard=guard)
        model.schedule = self.schedule
        return model

    @property
    def alphas(self) -> Tensor:
        """abar_t, (T,)."""
        return self.schedule.alphas

    @property
    def timesteps(self) -> int:
        """Number of timesteps T; t runs from 0 (clean) to T - 1."""
        return len(self.alphas)

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the denoiser."""
        return next(iter(self.denoiser.parameters())).dtype  # type: ignore[no-any-return]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W) of what the denoiser takes."""
        return latent_shape(self.vae, self.settings.shape)

    @override
    def read(self, dataset: Dataset) -> Dataset:
        if self.text is not None:
            encoder = Prompts(self.text.tokens, check=self.text.refuse_unknown, cut=self.text.cut)
            return Conditioned(dataset, encoder)
        return Conditioned(dataset, Classes(self.settings.classes or ()))

    @override
    def check_fits(self, info: dict[str, Any]) -> None:
        shape, levels = self.settings.shape, self.settings.levels
        if "shape" in info and (tuple(info["shape"]), info["levels"]) != (shape, levels):
            raise RecipeError(
                f"The model was built for shape {shape} and {levels} grey levels; the data has shape "
                f"{tuple(info['shape'])} and {info['levels']}. Type another model.pretrained=FOLDER, or other data."
            )
        if self.settings.classes is not None and tuple(info.get("classes", ())) != self.settings.classes:
            raise RecipeError(
                f"The model knows the classes {', '.join(self.settings.classes)}; the data has "
                f"{', '.join(info.get('classes', ())) or 'none'}. Type data with these labels."
            )

    def condition(self, batch: Batch) -> Condition:
        """Return the conditions of the items of a batch: classes (B,) or tokens (B, E, L)."""
        return Condition(tokens=batch["tokens"]) if self.text is not None else Condition(classes=batch["class"])

    def prompts(self, texts: Sequence[str], whole: bool = False) -> Condition:
        """Return conditions of prompts, or of class names; refuse a prompt to be cut off if the ``whole`` is asked."""
        device = self.alphas.device
        if self.text is not None:
            self.text.refuse_unknown(texts)
            if whole:
                self.text.refuse_cut(texts)
            return Condition(tokens=self.text.tokens(texts).to(device))
        known = self.settings.classes or ()
        for name in texts:
            if name not in known:
                raise RecipeError(f"The model knows no class {name!r}. {did_you_mean(name, known)}")
        return Condition(classes=torch.tensor([known.index(name) for name in texts], device=device))

    def null(self, n: int) -> Condition:
        """Return the null condition n times: the empty prompt, zeros, or the class beyond the last."""
        if self.text is not None and self.pipeline is not None and self.pipeline.zeros:
            shape = (n, len(self.text.encoders), self.text.length)
            return Condition(tokens=torch.full(shape, NOTHING, device=self.alphas.device))
        if self.text is not None:
            return self.prompts([""]).repeat(n)
        return Condition(classes=torch.full((n,), len(self.settings.classes or ()), device=self.alphas.device))

    def encode(self, condition: Condition) -> Condition:
        """Return encoded prompts, with gradient; classes and encoded prompts come back as they are."""
        if condition.tokens is None or self.text is None:
            return condition
        rows, where = torch.unique(condition.tokens, dim=0, return_inverse=True)  # prompts repeat within a batch
        nothing = (rows == NOTHING).flatten(1).all(dim=1)
        encoded: Condition = self.text(rows.masked_fill(nothing[:, None, None], 0))
        return (encoded.blank(nothing) if nothing.any() else encoded)[where]

    def tables(self) -> list[nn.Embedding]:
        """Return the embedding tables of words (one per text encoder) or of classes (one, or one per block)."""
        if self.text is not None:
            return [encoder.get_input_embeddings() for encoder in self.text.encoders]  # type: ignore[operator]
        return [module for module in self.denoiser.modules() if isinstance(module, nn.Embedding)]

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return eps(x_t, t, c), (B, C, H, W), of x_t (B, C, H, W), t (B,) int64 and B conditions."""
        return self.schedule.eps(self.raw(x, t, self.encode(condition)), x, t)

    def raw(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return what the network predicts, (B, C, H, W), for encoded conditions: noise, image or velocity."""
        return call_denoiser(self.denoiser, x, t, condition, self.settings.shape[1:])

    def guided(self, x: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
        """Return the guided eps, (B, C, H, W): eps(c_n) + g (eps(c) - eps(c_n)) of one forward pass.

        At g = 1 it is eps(c) alone. A guard steers it as at a step past its warm-up, without momentum.
        """
        if self.guard is not None:
            return self.guard.steering(self, guidance)(PAST_WARMUP, x, t, condition)
        if guidance == 1:
            return self.predict(x, t, condition)
        # g = 0 gives the unconditional score, g > 1 extrapolates (Ho and Salimans 2022, eq. 6, with w = g - 1)
        both = Condition.cat([self.encode(self.null(len(x))), self.encode(condition)])
        null, conditional = self.predict(x.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return null + guidance * (conditional - null)

    def steering(self, guidance: float) -> Steering:
        """Return the function that gives eps at each step of one trajectory; a guard's may keep a state."""
        if self.guard is not None:
            return self.guard.steering(self, guidance)
        return lambda number, x, t, condition: self.guided(x, t, condition, guidance)

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t of clean items and noise, both (B, C, H, W)."""
        return self.schedule.noised(x0, noise, t)

    def denoised(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the x_0 that ``eps`` implies, (B, C, H, W)."""
        return self.schedule.denoised(x, t, eps)

    def latents(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the clean items x_0 of a batch of images, (B, C, H, W)."""
        if "image" not in batch:
            raise RecipeError("The data has prompts without images, and this objective asks for images. Give images.")
        dtype = self.dtype
        images = batch["image"].to(dtype) * (2 / (self.settings.levels - 1)) - 1
        if self.vae is None:
            return images
        with torch.no_grad():
            spread = self.vae.encode(images).latent_dist
            # not spread.sample(), so that an item's noise depends on its id alone
            noise = randomness.child("autoencoder").normal(batch["id"], self.latent_shape, dtype)
            return to_latents(self.vae, spread.mean + spread.std * noise)

    def images(self, x0: Tensor) -> Tensor:
        """Return clean items (B, C, H, W) as images (B, C, H, W) uint8."""
        if self.vae is not None:
            x0 = self.vae.decode(from_latents(self.vae, x0)).sample
        # [-1, 1] -> 0 ... levels - 1; NaN of a diverged model become black
        grey = ((x0 + 1) * (self.settings.levels - 1) / 2).round().clamp(0, self.settings.levels - 1)
        return torch.nan_to_num(grey).to(torch.uint8)

    def training_loss(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the mean over values of (eps - eps(x_t, t, c))^2 per item, (B,), at a t drawn for each.

        A share ``drop`` of items gets the null condition (Ho and Salimans, 2022). Ho et al., DDPM, 2020, eq. 14.
        """
        ids = batch["id"]
        x0 = self.latents(batch, randomness)
        t = randomness.child("t").integers(ids, self.timesteps)
        noise = randomness.child("noise").normal(ids, tuple(x0.shape[1:]), x0.dtype)
        given = self.condition(batch)
        dropped = randomness.child("drop").uniform(ids, ()) < self.settings.drop
        both = Condition.cat([given, self.null(len(ids))])
        # row B + i of ``both`` is the null condition of item i
        rows = torch.arange(len(ids), device=ids.device) + dropped * len(ids)
        found = self.predict(self.noised(x0, noise, t), t, both[rows])
        return (found - noise).square().flatten(1).mean(dim=1)

    def noise(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return x_T ~ N(0, 1), one per id, (B, C, H, W); the same id and randomness give the same in every model."""
        return randomness.child("latents").normal(ids, self.latent_shape, self.dtype)

    @torch.no_grad()
    def sample(self, ids: Tensor, randomness: Randomness, like: Batch | None = None) -> Batch:
        """Draw one image per id, (B,) int64: ``id`` and ``image`` (B, C, H, W) uint8.

        They have the conditions of ``like``, by default the null condition.
        """
        condition = self.condition(like) if like is not None else self.null(len(ids))
        return {"id": ids, "image": self.draw(self.noise(ids, randomness), condition)}

    @torch.no_grad()
    def draw(self, noise: Tensor, condition: Condition) -> Tensor:
        """Return images (B, C, H, W) uint8 of noise x_T (B, C, H, W)."""
        if self.settings.one_step is not None:
            return self.images(self.generated(noise, self.encode(condition)))
        x = noise
        for _, after in self.trajectory(noise, condition):
            x = after
        return self.images(x)

    def generated(self, noise: Tensor, condition: Condition) -> Tensor:
        """Return x_0 of a one-step generator, with gradient, (B, C, H, W).

        The noise is scaled by sqrt(1 - abar), as if an empty image had been noised: Zhou et al., Score identity
        Distillation, 2024. arXiv:2404.04057
        """
        if self.settings.one_step is None:
            raise RecipeError("The model is no one-step generator. Type model.pretrained=FOLDER of one.")
        t = torch.full((len(noise),), self.settings.one_step, device=noise.device)
        x = self.schedule.scales(t, noise)[1] * noise
        return self.denoised(x, t, self.predict(x, t, condition))

    def times(self, steps: int | None = None) -> Tensor:
        """Return the timesteps of a trajectory, (S,) int64, falling."""
        return self.schedule.times(steps or self.settings.steps)

    def trajectory(
        self,
        x: Tensor,
        condition: Condition,
        guidance: float | None = None,
        steps: int | None = None,
        first: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the step, x after it) of deterministic DDIM, computed on demand.

        ``guidance`` and ``steps`` are by default those of the settings; x is the state before step ``first``.
        """
        encoded = self.encode(condition)  # once for the whole trajectory
        steer = self.steering(self.settings.guidance if guidance is None else guidance)
        steps = steps or self.settings.steps
        clip = self.vae is None  # latents have no fixed range
        yield from self.schedule.trajectory(x, lambda n, x, t: steer(n, x, t, encoded), steps, first, clip)

    def parameter_kinds(self) -> dict[str, list[str]]:
        """Return the names of the parameters of each kind, for ``scope.kinds``; a kind that is not there is empty."""
        return parameter_kinds(self, self.denoiser, self.text)

    def trainable(self) -> list[str]:
        """Return the names of the parameters that a loss can reach; every method freezes the autoencoder."""
        kinds = self.parameter_kinds()
        reached = {*kinds["denoiser"], *kinds["text_encoder"]}
        return [name for name, _ in self.named_parameters() if name in reached]

    @override
    def beside_weights(self) -> dict[str, Any]:
        return {"one_step": self.settings.one_step}

    @override
    def save_as_in_memory(self) -> None:
        self.saved_parts = {}

    @override
    def round_as_saved(self) -> None:
        for name, module in self.parts().modules().items():
            round_to(module, self.saved_parts.get(name, {}))

    @override
    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the pipeline that the model came from, or its parts; and ``unlearn.json``, and a guard beside them."""
        write_parts(self.parts(), folder, dtype)
        if self.guard is not None:
            write_guard(self.guard, folder)

    @override
    def write_adapter(self, adapter: Adapter, folder: Path) -> None:
        """Write an adapter as ``load_lora_weights`` of diffusers reads it, or peft (models conditioned on classes)."""
        write_adapter(self.parts(), adapter, folder)

    @override
    @classmethod
    def from_pretrained(cls, folder: Path, weights: bool = True) -> Self:
        """Read what ``save_pretrained`` wrote, or a pipeline of diffusers; without its guard where not the weights."""
        parts = read_parts(folder, weights)
        return cls(**vars(parts), guard=read_guard(folder) if weights else None)
