"""Text-to-Unlearn: what words name is removed from a generator's images, by a scorer of images against words."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt
from unlearn.data.base import Batch, Split
from unlearn.models.base import frozen
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.feature_extractors.clip import TextImage, text_image_net
from unlearn.models.gan.latents import layered
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss


@dataclass(frozen=True, kw_only=True)
class TextToUnlearn(Objective[ImageGenerator]):
    """Where a latent shows what the words name, draw it so that a scorer sees the words go.

    A latent mapper M, trained before the first step, adds what the words name: w' = w + m, with the one offset m (one
    per layer) that raises cos(E(G(w')), E_text(words)) on drawn latents, less ``mapper_decay`` times the mean square of
    m. The reference direction is that of latent pairs, i = mean of E(G_0(w')) - E(G_0(w)), made of unit embeddings E.
    Then, at one drawn w' per item,

    L = direction (1 - cos(E(G(w')) - E(G_0(w')), -i)) + T(G(w'), G_0(w)),

    G_0 the frozen target: the change goes against the direction, and what else is seen is that of w, which lacks it.
    ``retain=global_preservation`` keeps latents without the offset.

    Only the abstract and summaries of the paper were available: a direction in CLIP's space of latent pairs, a frozen
    generator, a latent mapper, and losses of direction, LPIPS and identity. Assumed: the mapper is one offset (in the
    paper a network of its own), what the two last losses compare, and the weights, all 1. At G = G_0 the first part has
    no direction; its cosine is taken as 0 there.

    Args:
        path: of the scorer: folder of a CLIP model, or TorchScript file (see unlearn.models.feature_extractors.clip).
        words: what to forget, e.g. ``a face with glasses``.
        without: words of what lacks it (``a face``); where given, m and i are held to E_text(words) -
            E_text(without), so that what both have in common does not count.
        direction: weight of the first part.
        mapper_steps: of the mapper, by Adam with rate ``mapper_lr``.
        mapper_lr: see above.
        mapper_decay: see above.
        mapper_batch: latents per step.
        likeness: T.

    State:
        offset: m, (num_ws, w_dim).
        direction: i, (D,).

    Reference:
        Nagasubramaniam et al., Prompting Forgetting: Unlearning in GANs via Textual Guidance, 2025. arXiv:2504.01218.
        The loss of directions: Gal et al., StyleGAN-NADA, 2022, eq. 2. arXiv:2108.00946
    """

    path: str = ""
    words: str = ""
    without: str | None = None
    direction: PositiveFloat = 1.0
    mapper_steps: PositiveInt = 100
    mapper_lr: PositiveFloat = 0.05
    mapper_decay: NonNegativeFloat = 0.01
    mapper_batch: PositiveInt = 8
    likeness: PerceptualLoss = field(default_factory=lambda: PerceptualLoss(features=0.0, identity=0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path or not self.words:
            raise ValueError("path or words is empty; give a scorer and what is to be forgotten, in words")

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse a scorer that does not exist, and nets that do not take such images."""
        text_image_net(self.path)
        self.likeness.check(splits[split].dataset.info)

    @override
    def prepare(self, model: ImageGenerator, context: Context[ImageGenerator]) -> None:
        """Train the mapper, and take the direction of its pairs; every rank finds the same."""
        scorer = text_image_net(self.path)
        stream = Randomness(context.randomness.seed, "text_to_unlearn")
        with frozen(model):
            context.state["offset"] = self.mapper(model, scorer, stream, context.device)
        with torch.no_grad():
            w = self._w(model, torch.arange(PAIRS, device=context.device), stream.child("pairs"))
            before = embedded(scorer, model.synthesis(w))
            after = embedded(scorer, model.synthesis(w + context.state["offset"]))
        found = (after - before).mean(dim=0)
        if not found.norm() > 0:
            raise RecipeError(
                f"text_to_unlearn: the scorer sees no difference where the words {self.words!r} are added to images. "
                "Type other words, or more mapper_steps."
            )
        context.state["direction"] = found / found.norm()

    def mapper(self, model: ImageGenerator, scorer: TextImage, stream: Randomness, device: torch.device) -> Tensor:
        """Return m, (num_ws, w_dim)."""
        wanted = F.normalize(scorer.texts([self.words])[0].to(device), dim=0)
        if self.without is not None:
            wanted = wanted - F.normalize(scorer.texts([self.without])[0].to(device), dim=0)
        mean = model.w_avg
        offset = torch.zeros(model.num_ws, len(mean), dtype=mean.dtype, device=device, requires_grad=True)
        optimizer = torch.optim.Adam([offset], lr=self.mapper_lr)
        numbers = torch.arange(self.mapper_batch, device=device)
        for step in range(self.mapper_steps):
            with torch.no_grad():
                w = self._w(model, numbers, stream.at(step))
                start = embedded(scorer, model.synthesis(w))
            with torch.enable_grad():
                shown = embedded(scorer, model.synthesis(w + offset))
                # a difference of words asks for a difference of images; at the first step it is 0, without direction
                against = shown - start if self.without is not None and step else shown
                loss = 1 - F.cosine_similarity(against, wanted[None]).mean()
                (offset.grad,) = torch.autograd.grad(loss + self.mapper_decay * offset.square().mean(), offset)
            optimizer.step()
        return offset.detach()

    def __call__(self, model: ImageGenerator, batch: Batch, context: Context[ImageGenerator]) -> Values:
        """Return the loss of one drawn latent per item, (B,); diagnostics: the cosine."""
        ids, state, target = batch["id"], context.state, context.reference()
        scorer = text_image_net(self.path)
        with torch.no_grad():
            w = self._w(target, ids, context.randomness)
            shown = w + state["offset"].to(w)
            images, features = target.both(torch.cat([w, shown]))
            theirs = self.likeness.of_images(images[: len(ids)], features[: len(ids)])
            before = embedded(scorer, images[len(ids) :])
        drawn, features = model.both(shown)
        moved = embedded(scorer, drawn) - before
        against = -state["direction"].to(moved)
        cosine = (moved @ against) / moved.square().sum(dim=1).add(TINY).sqrt()
        values = self.direction * (1 - cosine) + self.likeness.between(self.likeness.of_images(drawn, features), theirs)
        return Values(values, {"cosine": cosine.detach()})

    @staticmethod
    def _w(model: ImageGenerator, numbers: Tensor, stream: Randomness) -> Tensor:
        return layered(model, model.mapping(model.latent(numbers, stream)))


def embedded(scorer: TextImage, images: Tensor) -> Tensor:
    """Return the embeddings of images at length 1, (B, D)."""
    return F.normalize(scorer.images(images), dim=1)


PAIRS = 64
"""Latent pairs of whose embeddings the direction is the mean."""

TINY = 1e-8
"""Added to the squared length of a change, so that no change has a gradient."""
