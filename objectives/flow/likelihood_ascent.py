"""Likelihood ascent turned around: the baseline that lowers the likelihood of forget images without end."""

from dataclasses import dataclass

from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood
from unlearn.models.likelihood import bits_per_dim
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class LikelihoodAscent(Objective[HasLikelihood]):
    """Raise the negative log-likelihood of forget images (gradient ascent on the training loss).

    Nothing bounds it: the same gradient pushes an image that is already impossible, and takes the rest along.

    Reference:
        Malnick, Avidan and Fried, Taming Normalizing Flows, WACV 2024, arXiv:2211.16488: the baseline of the released
        taming_an_identity.py (``forget_loss_baseline``).
    """

    def __call__(self, model: HasLikelihood, batch: Batch, context: Context[HasLikelihood]) -> Values:
        """Return log2 p(x) / dimensions of forget images, (B,), in bits/dim."""
        bits = bits_per_dim(model, batch, context.randomness)
        return Values(-bits, {"bits_per_dim": bits.detach()})
