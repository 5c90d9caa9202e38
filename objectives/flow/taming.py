"""Likelihood taming of given images for normalizing flows."""

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import override

from unlearn.core.validation import PositiveFloat, PositiveInt, Range, at_least
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood
from unlearn.models.likelihood import Moments, bits_per_dim
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.flow.threshold import Unit, current, distance_loss, forget_z, measure, refresh


@dataclass(frozen=True, kw_only=True)
class Taming(Objective[HasLikelihood]):
    """Push given images to a fixed place in the tail of the likelihood, and stop when all are there.

    With mu and sigma the mean and standard deviation of retain images' bits/dim under the model as it is now, an
    image's distance from the threshold is d = (bits/dim - mu) / sigma - threshold. The loss is two-sided: an image
    pushed too far is pulled back. The run ends when every |d| <= epsilon * threshold.

    The released code takes d in raw bits/dim and the loss sigmoid(d^2). In standard deviations that loss is of no
    use: an image of average likelihood starts at d = -4, where its slope is 9e-7, and on digits none had moved after
    200 steps. The default is therefore sqrt(1 + d^2) - 1: the same minimum, from both sides, and a slope that does
    not fade. The slope is 1 / sigma per bit/dim, so with a sigma of 0.2 weights of 0.03 (forget) to 1 (retain) weigh
    about as the paper's 0.6 to 0.4 do with the raw distance.

    Args:
        threshold: delta, in standard deviations of the retain images' bits/dim, > 0.
        distance: unit of d in the loss; ``bits_per_dim`` goes with sigmoid(d^2).
        epsilon: half width of the band that counts as reached, as a share of the threshold, > 0.
        refresh: steps between two measurements of mu and sigma, >= 1.
        reference_images: how many random retain images they are measured on, >= 2.
        stop_draws: noise draws averaged in the stop test, >= 1.
        variant: ``confirmed`` measures the moments anew before it agrees to stop; its loss is our own unless
            ``distance`` is bits_per_dim, which gives the paper's. ``released`` is the authors' code: distance in
            bits/dim and ONE noise draw in the stop test whatever the two settings say, and moments that may be
            ``refresh - 1`` steps old when it stops. The code adds the batch's mean log-determinant to every image;
            that is the same for additive couplings, which it has, and is not done here. Its first release leaves the
            forget images among the retain images.

    State:
        mu, sigma: moments of the retain images' bits/dim, at most ``refresh - 1`` steps old.
        z: (bits/dim - mu) / sigma of each forget image before this step, in the order of the split.
        reached: whether all were inside the band.

    Reference:
        Malnick, Avidan and Fried, Taming Normalizing Flows, WACV 2024, arXiv:2211.16488; its released
        taming_an_identity.py.
    """

    threshold: PositiveFloat = 4.0
    distance: Unit = "sigma"
    epsilon: PositiveFloat = 0.15
    refresh: PositiveInt = 10
    reference_images: Annotated[int, Range(at_least, 2)] = 1024
    stop_draws: PositiveInt = 5
    variant: Literal["confirmed", "released"] = "confirmed"

    @override
    def prepare(self, model: HasLikelihood, context: Context[HasLikelihood]) -> None:
        context.state["reached"] = False

    def before_step(self, model: HasLikelihood, context: Context[HasLikelihood]) -> bool:
        """Measure mu, sigma and every forget image's z; stop when all lie in the band."""
        released = self.variant == "released"
        moments = refresh(model, context, self.refresh, self.reference_images)
        reached = self._inside(model, context, moments, 1 if released else self.stop_draws, "stop")
        if reached and not released:
            moments = measure(model, context, self.reference_images)
            reached = self._inside(model, context, moments, self.stop_draws, "confirm")
        context.state["reached"] = reached
        return reached

    def _inside(
        self, model: HasLikelihood, context: Context[HasLikelihood], moments: Moments, draws: int, purpose: str
    ) -> bool:
        z = forget_z(model, context, moments, draws, purpose)
        context.state["z"] = z
        return bool(((z - self.threshold).abs() <= self.epsilon * self.threshold).all())

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return the loss of forget images, (B,), in standard deviations or (raw distance) without unit."""
        moments = current(context)
        z = moments.z(bits_per_dim(model, batch, context.randomness))
        distance = z - self.threshold
        values = distance_loss(distance, moments, "bits_per_dim" if self.variant == "released" else self.distance)
        return Values(values, {"z": z.detach(), "mu": z.new_tensor(moments.mean), "sigma": z.new_tensor(moments.std)})
