"""Likelihood taming of a whole category, and the baseline's counterpart in images that keep coming."""

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import override

from unlearn.core.validation import PositiveFloat, PositiveInt, Range, at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood
from unlearn.models.likelihood import bits_per_dim
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.flow.threshold import Unit, current, distance_loss, forget_z, refresh


@dataclass(frozen=True, kw_only=True)
class CategoryTaming(Objective[HasLikelihood]):
    """Push every image of a category, in minibatches, to a fixed place in the tail of the likelihood.

    The loss is that of ``taming``; there is no stop test unless it is asked for, and then it is on the category's
    mean: (mean z - threshold) within epsilon * threshold.

    Args:
        threshold: delta, in standard deviations of the retain images' bits/dim, > 0.
        distance: unit of d in the loss; ``bits_per_dim`` is the released code's loss, sigmoid(d^2).
        refresh: steps between two measurements of mu and sigma (and stop tests), >= 1.
        reference_images: how many random retain images they are measured on, >= 2.
        stop: end the run when the category's mean z is inside the band.
        epsilon: half width of the band, as a share of the threshold, > 0.
        stop_draws: noise draws averaged in the stop test, >= 1.

    State:
        mu, sigma: moments of the retain images' bits/dim.
        z: with ``stop``, the mean z of the forget images at the last test.
        reached: with ``stop``, whether it was inside the band.

    Reference:
        Malnick, Avidan and Fried, Taming Normalizing Flows, WACV 2024, arXiv:2211.16488; forget_attribute.py of the
        authors' research code (alpha 0.6, gamma 0.6, delta 1, learning rate 5e-5, 200 steps of 8 images).
    """

    threshold: PositiveFloat = 4.0
    distance: Unit = "sigma"
    refresh: PositiveInt = 10
    reference_images: Annotated[int, Range(at_least, 2)] = 1024
    stop: bool = False
    epsilon: PositiveFloat = 0.15
    stop_draws: PositiveInt = 5

    @override
    def prepare(self, model: HasLikelihood, context: Context[HasLikelihood]) -> None:
        if self.stop:
            context.state["reached"] = False

    def before_step(self, model: HasLikelihood, context: Context[HasLikelihood]) -> bool:
        """Measure mu and sigma, and test the category's mean z where a stop is asked for."""
        moments = refresh(model, context, self.refresh, self.reference_images)
        if not self.stop or context.step % self.refresh:
            return False
        z = forget_z(model, context, moments, self.stop_draws, "stop").mean().item()
        reached = abs(z - self.threshold) <= self.epsilon * self.threshold
        context.state.update(z=z, reached=reached)
        return reached

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return the loss of forget images, (B,), in standard deviations."""
        moments = current(context)
        z = moments.z(bits_per_dim(model, batch, context.randomness))
        return Values(distance_loss(z - self.threshold, moments, self.distance), {"z": z.detach()})
