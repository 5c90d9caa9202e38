"""DoCo: what the model draws of a concept is moved into the domain of its anchor, against a discriminator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.validation import above, at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import Denoises
from unlearn.models.conditioning import Condition
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values, frozen
from unlearn.objectives.diffusion.noisy_states import States, StateSource


@dataclass(frozen=True, kw_only=True)
class DoCo(Objective[Denoises]):
    """Domain correction: a discriminator tells the concept's estimates of x_0 from the anchor's until it cannot.

    From one noisy state x_t of an item that the target drew of the anchor, the model told the concept and the target
    told the anchor both estimate x_0. A discriminator D of patches learns D = 1 on the former and D = 0 on the latter;
    the model's value is the cross-entropy of D on its own estimate with 0, the mean over patches. The
    concept-preserving gradient is ``combine=one_sided`` with any retain term; ``combine=doco_released`` is the rule of
    the released code.

    Differences from the released code: D has group norms in place of batch norms, whose statistics would make an item's
    value depend on its company; D steps before the model, not after it; and the steps in which D moves alone do not
    count as steps. In pixel space the estimates are clipped to [-1, 1], as the noise schedule there does.

    Args:
        items: anchor items that the target draws once.
        steps: DDIM steps of each, from 2 to the model's timesteps.
        guidance: of each; 1 for none.
        width: channels of D's first layer, a multiple of 8; the released D has 64.
        discriminator_lr: rate of D; null takes the model's. Adam with betas 0.5 and 0.999, as released.
        warmup: steps that D takes alone at first; the released code takes 1,000 of its 2,000.

    Reference:
        Wu et al., Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept Preserving Gradient,
        2025. arXiv:2405.15304. The adversary's terms are those of the released code.
    """

    items: int = 64
    steps: int = 20
    guidance: float = 3.0
    width: int = 64
    discriminator_lr: float | None = 5e-4
    warmup: int = 100

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width is {self.width}; it must be a multiple of 8")
        at_least(self, warmup=0)
        above(self, discriminator_lr=0)
        _ = self.source

    @property
    def source(self) -> StateSource:
        """Where states come from."""
        return StateSource(
            source="generated", items=self.items, steps=self.steps, guidance=self.guidance, of_anchor=True
        )

    def auxiliary(self, model: Any, teacher: Callable[[], Any], split: str, randomness: Randomness) -> AuxiliaryNetwork:
        """Return the discriminator."""
        like = next(model.denoiser.parameters())

        def moves(optim: Optim) -> Optim:
            lr = self.discriminator_lr or optim.lr
            return replace(optim, name="adam", lr=lr, betas=(0.5, 0.999), weight_decay=0.0, clip=None)

        return AuxiliaryNetwork(
            name="discriminator",
            build=lambda: PatchDiscriminator(model.latent_shape, self.width, randomness).to(like.device, like.dtype),
            groups={split: {"discriminator": Discriminates(term=self)}},
            optim=moves,
            warmup=self.warmup,
        )

    def prepare(self, model: Any, context: Context) -> None:
        """Let the target draw the anchor's items."""
        self.source.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return the cross-entropy of D(x_0) with 0, (B,); diagnostics: the share of patches taken for the anchor's."""
        estimate = context.shared.pop(_key(batch, context), None)
        if estimate is None:
            found = self.source(model, batch, context)
            estimate = self.estimate(model, found, found.condition)
        with frozen(context.beside()):
            logits = context.beside()(estimate)
        return Values(_mean(F.softplus(logits)), {"taken_for_anchor": _mean((logits.detach() < 0).to(logits.dtype))})

    def estimate(self, model: Any, found: States, condition: Condition) -> Tensor:
        """Return x_0 as a model told a condition has it from the states, (B, C, H, W)."""
        x0: Tensor = model.denoised(found.x, found.t, model.predict(found.x, found.t, condition))
        return x0.clamp(-1, 1) if model.vae is None else x0


@dataclass(frozen=True, kw_only=True)
class Discriminates(Objective):
    """The discriminator's own loss; it leaves the model's estimates for the model's loss.

    Args:
        term: the model's.
    """

    term: DoCo

    def prepare(self, model: Any, context: Context) -> None:
        """Let the target draw the anchor's items, where that has not been done."""
        self.term.prepare(model, context)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        """Return -log(1 - sigmoid D(anchor)) - log sigmoid D(concept), each the mean over patches, (B,)."""
        found = self.term.source(model, batch, context)
        estimate = self.term.estimate(model, found, found.condition)
        if estimate.requires_grad and context.step >= 0:
            context.shared[_key(batch, context)] = estimate
        with torch.no_grad():
            anchor = self.term.estimate(context.reference(), found, _anchor(found))
        of_anchor, of_concept = context.beside()(torch.cat([anchor, estimate.detach()])).chunk(2)
        right = (_mean((of_anchor.detach() < 0).double()) + _mean((of_concept.detach() > 0).double())) / 2
        return Values(_mean(F.softplus(of_anchor)) + _mean(F.softplus(-of_concept)), {"right": right})


class PatchDiscriminator(nn.Module):
    """Convolutions that halve the sides until they are 4, then a logit a patch; no statistics of the batch.

    Args:
        shape: (C, H, W) of what it looks at; H and W at least 8.
        width: channels of the first layer; each further one doubles them, to 8 times as many at most.
        randomness: of the weights.

    Reference:
        Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017. arXiv:1611.07004
    """

    def __init__(self, shape: tuple[int, ...], width: int, randomness: Randomness) -> None:
        super().__init__()
        channels, height, side = shape
        halvings = max(1, min(height, side).bit_length() - 3)
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.child("weights").generator().initial_seed())
            for level in range(halvings):
                wanted = width * min(2**level, 8)
                layers.append(nn.Conv2d(channels, wanted, 4, stride=2, padding=1))
                if level:
                    layers.append(nn.GroupNorm(8, wanted))
                layers.append(nn.LeakyReLU(0.2))
                channels = wanted
            self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, padding=1))

    def forward(self, x0: Tensor) -> Tensor:
        """Return logits (B, 1, h, w) of x_0 (B, C, H, W)."""
        return self.layers(x0)  # type: ignore[no-any-return]


_mean = partial(torch.mean, dim=(1, 2, 3))


def _anchor(found: States) -> Condition:
    if found.anchor is None:
        raise RuntimeError("items without an anchor have no domain to be moved to")
    return found.anchor


def _key(batch: Batch, context: Context) -> tuple[str, str, int]:
    """Return what finds the estimates made for this very batch in this step."""
    return ("estimate", context.split, id(batch))
