"""DoCo: what the model draws of a concept is moved into the domain of its anchor, against a discriminator."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeInt, PositiveFloat
from unlearn.data.base import Batch
from unlearn.models.base import frozen
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.protocols import PipelineDenoiser
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values
from unlearn.objectives.diffusion.noisy_states import AnchorStates, NoisyStateObjective, Source, States


@dataclass(frozen=True, kw_only=True)
class DoCo(NoisyStateObjective[PipelineDenoiser]):
    """Domain correction: a discriminator tells the concept's estimates of x_0 from the anchor's until it cannot.

    From one noisy state x_t of an item that the target drew of the anchor, the model conditioned on the concept and the
    target conditioned on the anchor both estimate x_0. A discriminator D of patches learns D = 1 on the former and
    D = 0 on the latter; the model's value is the cross-entropy of D on its own estimate with 0, the mean over patches.
    The concept-preserving gradient is ``combine=one_sided`` with any retain term; ``combine=doco_released`` is the rule
    of the released code.

    Differences from the released code: D has group norms in place of batch norms, whose statistics would make an item's
    value depend on its company; D steps before the model, not after it; and the steps in which D is trained alone do
    not count as steps. In pixel space the estimates are clipped to [-1, 1], as the noise schedule there does.

    Args:
        states: ``generated`` images of the anchor.
        width: channels of D's first layer, a multiple of 8; the released D has 64.
        discriminator_lr: learning rate of D; null takes the model's. Adam with betas 0.5 and 0.999, as released.
        warmup: steps that D takes alone at first; the released code takes 1,000 of its 2,000.

    Reference:
        Wu et al., Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept Preserving Gradient,
        2025. arXiv:2405.15304. The adversary's terms are those of the released code.
    """

    states: AnchorStates = field(default_factory=AnchorStates)
    sources: ClassVar[tuple[Source, ...]] = ("generated",)
    width: int = 64
    discriminator_lr: PositiveFloat | None = 5e-4
    warmup: NonNegativeInt = 100

    prepares_with: ClassVar[tuple[str, ...]] = ("warmup", "states")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width is {self.width}; it must be a multiple of 8")

    @override
    def auxiliary(
        self, model: PipelineDenoiser, teacher: Callable[[], PipelineDenoiser], split: str, randomness: Randomness
    ) -> AuxiliaryNetwork:
        like = next(model.denoiser.parameters())
        adam = partial(replace, name="adam", betas=(0.5, 0.999), weight_decay=0.0, clip=None)
        return AuxiliaryNetwork(
            name="discriminator",
            build=lambda: PatchDiscriminator(model.latent_shape, self.width, randomness).to(like.device, like.dtype),
            groups={split: {"discriminator": Discriminates(term=self)}},
            optim=lambda optim: adam(optim, lr=self.discriminator_lr or optim.lr),
            warmup=self.warmup,
        )

    def __call__(self, model: PipelineDenoiser, batch: Batch, context: Context[PipelineDenoiser]) -> Values:
        """Return the cross-entropy of D(x_0) with 0, (B,); diagnostics: the share of patches taken for the anchor's."""
        # D's own step, just before, has left the estimate; in a warm-up, or where D was rebuilt, there is none
        estimate = context.shared.pop(context.key("estimate", batch), None)
        if estimate is None:
            found = self.states(model, batch, context)
            estimate = self.estimate(model, found, found.condition)
        discriminator: nn.Module = context.beside()
        with frozen(discriminator):
            logits: Tensor = discriminator(estimate)
        # -log(1 - sigmoid(l)) = softplus(l): the cross-entropy with the anchor's label 0
        return Values(_mean(F.softplus(logits)), {"taken_for_anchor": _mean((logits.detach() < 0).to(logits.dtype))})

    def estimate(self, model: PipelineDenoiser, found: States, condition: Condition) -> Tensor:
        """Return a model's estimate of x_0 from the states under a condition, (B, C, H, W)."""
        x0 = model.denoised(found.x, found.t, model.predict(found.x, found.t, condition))
        return x0.clamp(-1, 1) if model.vae is None else x0


@dataclass(frozen=True, kw_only=True)
class Discriminates(Objective[PipelineDenoiser]):
    """The discriminator's own loss; it leaves the model's estimates for the model's loss."""

    term: DoCo

    def __call__(self, model: PipelineDenoiser, batch: Batch, context: Context[PipelineDenoiser]) -> Values:
        """Return -log(1 - sigmoid D(anchor)) - log sigmoid D(concept), each the mean over patches, (B,)."""
        found = self.term.states(model, batch, context)
        assert found.anchor is not None  # ``prepare`` has refused items without an anchor
        estimate = self.term.estimate(model, found, found.condition)
        if estimate.requires_grad and context.step >= 0:  # below 0 D warms up, and no step of the model follows
            context.shared[context.key("estimate", batch)] = estimate
        with torch.no_grad():
            anchor = self.term.estimate(context.reference(), found, found.anchor)
        of_anchor, of_concept = context.beside()(torch.cat([anchor, estimate.detach()])).chunk(2)
        right = (_mean((of_anchor.detach() < 0).double()) + _mean((of_concept.detach() > 0).double())) / 2
        return Values(_mean(F.softplus(of_anchor)) + _mean(F.softplus(-of_concept)), {"right": right})


class PatchDiscriminator(nn.Module):
    """Convolutions that halve the sides until they are 4, then one logit per patch; no statistics of the batch.

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
        with randomness.child("weights").seeding():
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
