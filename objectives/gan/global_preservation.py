"""GUIDE's global term: the images of other latents stay those of the target."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import check_encoder
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.gan.forget_classifier import ForgetClassifier
from unlearn.objectives.gan.latent_cache import key_of, recall_drawings, remember_drawings, remember_latents
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss, Seen


@dataclass(frozen=True, kw_only=True)
class GlobalPreservation(Objective[ImageGenerator]):
    """Keep the target's images: T(w_r, w_r), w_r = mapping(z) of one drawn z, or the item's own latent, per item.

    The paper's term is a sum over two z and has the weight 1; this one is a mean over the batch, so the paper's is
    ``weight: 2``. At the target itself the gradient is 0. Where the mapping network is trained, drawn latents
    go through it as it is, so that what it makes of z stays as well.

    Args:
        latents: ``drawn``: of the prior, as in the paper, whatever the items are; ``items``: those of the items, found
            once (an image's by ``inversion``).
        pool: number of z sampled once; the target's images of them are computed once. null samples z at each step, as
            the paper does, and holds a second model for their images.
        judge: classifier (embedders.attribute_net); drawn latents whose image shows what is to be forgotten are left
            out. null leaves none out, which is right for single identities.
        label: labels of the classifier to forget; by default the classes that the forget split covers completely.
        likeness: T; the paper's is LPIPS alone.
        inversion: how the latents of images are found.
        encoder: TorchScript file that maps images to latents, in place of the inversion.

    Reference:
        the global preservation loss of Seo et al., Generative Unlearning for Any Identity, 2024. arXiv:2405.09879
    """

    latents: Literal["drawn", "items"] = "drawn"
    pool: PositiveInt | None = 256
    judge: str | None = None
    label: list[str] = field(default_factory=list)
    likeness: PerceptualLoss = field(default_factory=lambda: PerceptualLoss(features=0.0, identity=0.0))
    inversion: Inversion = field(default_factory=Inversion)
    encoder: str | None = None

    prepares_with: ClassVar[tuple[str, ...]] = ("pool", "inversion")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label and self.judge is None:
            raise ValueError("label is what the judge looks for, and there is none; give judge too, or drop label")

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse nets and encoders that do not take such images."""
        self.likeness.check(splits[split].dataset.info)
        check_encoder(self.encoder, splits[split].dataset.info)
        if self.judge is not None:
            self.classifier.check(splits)

    @property
    def classifier(self) -> ForgetClassifier:
        """The classifier that ``judge`` and ``label`` name."""
        return ForgetClassifier(self.judge, self.label)

    @override
    def prepare(self, model: ImageGenerator, context: Context[ImageGenerator]) -> None:
        """Precompute the target's images of the latents."""
        context.state["drawn"] = drawn = f"global_{key_of(self)}"
        if self.latents == "items":
            context.state["latents"] = name = remember_latents(model, context, self.encoder or self.inversion)
            found = partial(context.recall, name, context.split)
            remember_drawings(model, context, drawn, context.splits[context.split].ids, self.likeness, found)
        elif self.pool is not None:
            numbers = torch.arange(self.pool)

            def prior(part: Tensor) -> Tensor:
                return model.mapping(self._z(model, part, context))

            remember_drawings(model, context, drawn, numbers, self.likeness, prior)
            context.state["spared"] = numbers
            if self.judge is not None:
                images = recall_drawings(context, drawn, numbers).images
                spared = numbers[self.classifier.probability(model, images, context) < 0.5]
                if not len(spared):
                    raise RecipeError("global_preservation: the judge leaves no drawn latent. Type judge=null.")
                context.state["spared"] = spared

    def __call__(self, model: ImageGenerator, batch: Batch, context: Context[ImageGenerator]) -> Values:
        """Return the distance of the two models' images per item, (B,)."""
        ids = batch["id"]
        keep: Tensor | float = 1.0
        if self.latents == "items":
            w = context.recall(context.state["latents"], context.split, ids).to(model.dtype)
            theirs = recall_drawings(context, context.state["drawn"], ids)
        elif self.pool is not None:
            spared = context.state["spared"].to(ids.device)
            chosen = spared[context.randomness.integers(ids, len(spared))]
            w = model.mapping(self._z(model, chosen, context))
            theirs = recall_drawings(context, context.state["drawn"], chosen)
        else:
            z = model.latent(ids, context.randomness)
            w = model.mapping(z)
            theirs, keep = self._now(z, context)
        values = self.likeness.between(self.likeness.seen(model, w), theirs) * keep
        return Values(values, {"distance": values.detach()})

    @torch.no_grad()
    def _now(self, z: Tensor, context: Context[ImageGenerator]) -> tuple[Seen, Tensor | float]:
        """Return what the target draws of z, and 0 for what is left out, 1 for the others."""
        target = context.reference()
        theirs = self.likeness.seen(target, target.mapping(z))
        if self.judge is None:
            return theirs, 1.0
        return theirs, (self.classifier.probability(target, theirs.images, context) < 0.5).to(z)

    def _z(self, model: ImageGenerator, numbers: Tensor, context: Context[ImageGenerator]) -> Tensor:
        return model.latent(numbers, Randomness(context.randomness.seed, "global"))
