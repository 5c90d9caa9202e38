"""A direction in latent space along which something appears, found by a classifier of the target's images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.capabilities import ImageGenerator
from unlearn.objectives.base import Context
from unlearn.objectives.gan.forget_classifier import ForgetClassifier

Way = Literal["mean_difference", "hyperplane"]
Space = Literal["z", "w"]


@dataclass(frozen=True)
class Direction:
    """A unit vector in latent space, and projections of latents on it.

    Args:
        axis: (D,), of length 1.
        border: projection that separates latents with from latents without.
        without: mean projection of those without.
    """

    axis: Tensor
    border: float
    without: float

    def beyond(self, latents: Tensor, border: float) -> Tensor:
        """Return how far the projections of latents (B, D) lie beyond a border, (B,), 0 for those that do not."""
        return (latents @ self.axis.to(latents) - border).clamp(min=0)


def prior(model: ImageGenerator, numbers: Tensor, space: Space, seed: int) -> Tensor:
    """Return drawn latents, (B, D): z, or w of z."""
    z = model.latent(numbers, Randomness(seed, "direction"))
    return z if space == "z" else model.mapping(z)


@torch.no_grad()
def priors(model: ImageGenerator, context: Context[ImageGenerator], samples: int, space: Space) -> Tensor:
    """Return the first latents that ``prior`` draws by the run's seed, (samples, D)."""
    parts = [part.to(context.device) for part in torch.arange(samples).split(256)]
    return torch.cat([prior(model, part, space, context.randomness.seed) for part in parts])


def find(
    model: ImageGenerator,
    context: Context[ImageGenerator],
    classifier: ForgetClassifier,
    samples: int,
    way: Way,
    space: Space,
) -> Direction:
    """Return the direction towards latents whose images show something with a probability above one half.

    Args:
        model: the target.
        context: of the term.
        classifier: of the images.
        samples: number of images that are classified.
        way: ``mean_difference``: from the mean of the latents without to that of those with, the border half-way;
            ``hyperplane``: the normal of a linear support vector machine, and its plane.
        space: of which latents.

    Raises:
        RecipeError: fewer than two images with, or without.
    """

    def likely(part: Tensor) -> Tensor:
        latents = prior(model, part.to(context.device), space, context.randomness.seed)
        w = model.mapping(latents) if space == "z" else latents
        return classifier.probability(model, model.synthesis(w), context)

    with torch.no_grad():
        shown = context.map_ids(likely, torch.arange(samples), batch_size=32).cpu() > 0.5
    latents = priors(model, context, samples, space).double().cpu()
    if shown.sum() < 2 or (~shown).sum() < 2:
        raise RecipeError(
            f"{int(shown.sum())} of {samples} images of the target show what is to be forgotten, and a direction asks "
            "for two with and two without. Type more samples, or another classifier or label."
        )
    axis, border = WAYS[way](latents, shown)
    return Direction(axis, border, float((latents[~shown] @ axis).mean()))


def mean_difference(latents: Tensor, shown: Tensor) -> tuple[Tensor, float]:
    """Return (mu+ - mu-) / |mu+ - mu-| and the projection of (mu+ + mu-) / 2."""
    plus, minus = latents[shown].mean(dim=0), latents[~shown].mean(dim=0)
    axis = (plus - minus) / (plus - minus).norm()
    return axis, float((plus + minus) / 2 @ axis)


def hyperplane(latents: Tensor, shown: Tensor) -> tuple[Tensor, float]:
    """Return the unit normal of a linear support vector machine, towards those with, and its plane's place on it."""
    from sklearn.svm import LinearSVC

    machine = LinearSVC(class_weight="balanced", dual=False, random_state=0)
    machine.fit(latents.numpy(), shown.numpy())
    normal = np.asarray(machine.coef_)[0]
    length = float(np.linalg.norm(normal))
    # the plane n . x + b = 0 has the projection -b / |n| on the unit normal
    return torch.from_numpy(normal / length), float(-machine.intercept_[0] / length)


WAYS: dict[Way, Callable[[Tensor, Tensor], tuple[Tensor, float]]] = {
    "mean_difference": mean_difference,
    "hyperplane": hyperplane,
}
