"""A feature is forgotten along a latent direction: latents beyond a border are drawn as those on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, PositiveInt, Range, at_least
from unlearn.data.base import Batch, Split
from unlearn.models.capabilities import ImageGenerator
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.gan.directions import Direction, Space, Way, find, prior, priors
from unlearn.objectives.gan.forget_classifier import ForgetClassifier
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss


@dataclass(frozen=True, kw_only=True)
class LatentProjection(Objective[ImageGenerator]):
    """Draw z as the target draws z - (e . z - t) e where e . z > t, and as it draws z itself elsewhere.

    e is the unit vector from the mean of latents whose images lack the feature to the mean of those whose images show
    it, among images that the target draws; no data are needed. L = T(z, aim of z), the mean over ``per_item`` drawn z
    per item.

    The paper collects the images by hand; here a classifier does it. Only summaries of the paper were available: the
    weights of its three parts (reconstruction, unlearning, perceptual) are assumed equal, and so is t, half-way between
    the two means.

    Args:
        classifier: by name or path (feature_extractors.embedders.attribute_net); null takes the packaged one that fits.
        label: its labels to forget; by default the classes that the forget split covers completely.
        samples: number of images of the target that are classified.
        space: latents of the direction, z or w.
        direction: ``mean_difference`` as above, or ``hyperplane``, the normal of a linear classifier of latents.
        threshold: t; null takes the border that ``direction`` gives.
        depth: how far within the border the aim lies: 0 on it (the paper), 1 at the mean of those without.
        per_item: latents drawn per item and step; more where the items are few, as one identity is.
        draws: ``all`` latents, or only those ``beyond`` the border, where another term keeps the others.
        likeness: T.

    State:
        axis: e.

    Reference:
        Moon et al., Feature Unlearning for Pre-trained GANs and VAEs, 2024. arXiv:2303.05699
    """

    classifier: str | None = None
    label: list[str] = field(default_factory=list)
    samples: Annotated[int, Range(at_least, 4)] = 1000
    space: Space = "z"
    direction: Way = "mean_difference"
    threshold: float | None = None
    depth: NonNegativeFloat = 0.0
    per_item: PositiveInt = 1
    draws: Literal["all", "beyond"] = "all"
    likeness: PerceptualLoss = field(
        default_factory=lambda: PerceptualLoss(pixels=1.0, norm="l2", features=0.0, identity=0.0)
    )

    @override
    def smallest(self) -> Self:
        return replace(self, samples=min(self.samples, 128))  # fewer may hold no two images with, or without

    @property
    def forget_classifier(self) -> ForgetClassifier:
        """The classifier that says what images show."""
        return ForgetClassifier(self.classifier, self.label)

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse nets that do not take such images, and a classifier that knows nothing of what is forgotten."""
        self.likeness.check(splits[split].dataset.info)
        self.forget_classifier.check(splits)

    @override
    def prepare(self, model: ImageGenerator, context: Context[ImageGenerator]) -> None:
        """Find the direction, and which of the drawn latents lie beyond the border.

        Raises:
            RecipeError: none does, so that nothing would be forgotten.
        """
        found = find(model, context, self.forget_classifier, self.samples, self.direction, self.space)
        # the aim lies ``depth`` of the way from the border to the mean of latents without
        border = found.border if self.threshold is None else self.threshold
        context.state.update(axis=found.axis, border=border, aim=border + self.depth * (found.without - border))
        latents = priors(model, context, self.samples, self.space)
        past = found.beyond(latents, border).cpu() > 0
        if not past.any():
            places = latents @ found.axis.to(latents)
            raise RecipeError(
                f"threshold is {border:g}, and none of {self.samples} drawn latents lies beyond it: nothing would be "
                f"forgotten. They lie between {places.min():.3g} and {places.max():.3g}. Type threshold=null, which "
                f"takes {found.border:.3g}."
            )
        if self.draws == "beyond":
            context.state["beyond"] = torch.arange(self.samples)[past]

    def __call__(self, model: ImageGenerator, batch: Batch, context: Context[ImageGenerator]) -> Values:
        """Return the mean of T over an item's latents, (B,); diagnostics: the share of latents beyond the border."""
        ids = batch["id"]
        more = [context.randomness.child(f"draw {number}") for number in range(1, self.per_item)]
        z = torch.cat([self._z(model, ids, draw, context) for draw in (context.randomness, *more)])
        with torch.no_grad():
            target = context.reference()
            here = z if self.space == "z" else target.mapping(z)
            aim = self.moved(here, context)
            theirs = self.likeness.seen(target, target.mapping(aim) if self.space == "z" else aim)
            far = (aim != here).any(dim=1).to(z)
        values = self.likeness.between(self.likeness.seen(model, model.mapping(z)), theirs)
        each = (self.per_item, len(ids))
        return Values(values.view(each).mean(dim=0), {"beyond": far.view(each).mean(dim=0)})

    def _z(self, model: ImageGenerator, ids: Tensor, draw: Randomness, context: Context[ImageGenerator]) -> Tensor:
        """Return one drawn z per item, (B, D)."""
        if self.draws == "all":
            return model.latent(ids, draw)
        chosen = context.state["beyond"].to(ids.device)
        return prior(model, chosen[draw.integers(ids, len(chosen))], "z", context.randomness.seed)

    def moved(self, latents: Tensor, context: Context[ImageGenerator]) -> Tensor:
        """Return latents (B, D) of which those beyond the border are moved to the aim; others stay."""
        state = context.state
        found = Direction(state["axis"].to(latents), state["border"], 0.0)
        past = found.beyond(latents, found.border)
        # e . z - border is ``past``; to end at the aim, z goes back by e . z - aim = past + border - aim
        back = torch.where(past > 0, past + state["border"] - state["aim"], past)
        return latents - back[:, None] * found.axis
