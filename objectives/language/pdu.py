"""Primal-dual unlearning: the forget term, and a retain term whose weight follows a limit on the retain loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import NonNegativeFloat, NonNegativeInt, PositiveFloat
from unlearn.data.base import Batch
from unlearn.models.capabilities import Continues, Trains
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class PDU(Objective[Continues]):
    """Flatten the logits at forget tokens.

    L = mean_t (max_v z_v - mean_v z_v)^2 over the answer's tokens. No softmax, so the gradient does not vanish. The
    retain half is ``pdu_retain``.

    Reference:
        Entesari et al., Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models, 2025, the
        logit-margin flattening loss. arXiv:2506.05314. OpenUnlearning's code masks logits by unshifted labels, one
        position late: it leaves out the distribution of the first answer token and takes one behind the last. It is not
        offered.
    """

    def __call__(self, model: Continues, batch: Batch, context: Context[Continues]) -> Values:
        """Return the squared margin per item, (B,)."""
        answers = model.answers(batch)
        margin = answers.logits.amax(dim=1) - answers.logits.mean(dim=1)
        return Values(answers.means(margin.square()), {"margin": answers.means(margin.detach())})


@dataclass(frozen=True, kw_only=True)
class PDURetain(Objective[Trains]):
    """Keep the retain loss below a limit, by a weight that rises while it is above and falls while it is below.

    L = lambda * NLL, and after each step lambda <- max(0, lambda + rate (NLL of the batch - epsilon)); the constant
    -lambda epsilon of the paper's Lagrangian has no gradient and is left out of the value.

    Args:
        epsilon: the limit, in nats per token, > 0; by default it follows from ``tolerance``.
        tolerance: epsilon is (1 + tolerance) times the target's mean retain loss, > 0; the paper's natural choice.
        rate: step size of the dual variable, >= 0; 0 holds it.
        start: lambda at the first step, >= 0. The forget loss is a squared logit, hence large; the authors advise 50 or
            100 for models of billions of weights.
        warmup: number of first steps in which lambda is held, >= 0 (the authors: 3 to 5 passes over the data).

    State:
        dual: lambda.
        epsilon: the limit.

    Reference:
        Entesari et al., 2025 (see PDU): the primal-dual algorithm, and epsilon = (1 + alpha) L_retain(target).
    """

    epsilon: PositiveFloat | None = None
    tolerance: PositiveFloat = 0.5
    rate: NonNegativeFloat = 1.0
    start: NonNegativeFloat = 50.0
    warmup: NonNegativeInt = 0

    follows: ClassVar[bool] = True

    def prepare(self, model: Trains, context: Context[Trains]) -> None:
        """Set the limit from the target's loss, where none is given."""
        context.state.update(dual=self.start, epsilon=self.epsilon)
        if self.epsilon is None:

            def loss(ids: Tensor) -> Tensor:
                values: Tensor = model.training_loss(context.batch(context.split, ids), context.randomness)
                return values.double()

            with torch.no_grad():
                mean = context.map_ids(loss, context.splits[context.split].ids, batch_size=16).mean()
            context.state["epsilon"] = (1 + self.tolerance) * mean.item()

    def __call__(self, model: Trains, batch: Batch, context: Context[Trains]) -> Values:
        """Return lambda times the negative log-likelihood, (B,), in nats per token."""
        nll = model.training_loss(batch, context.randomness)
        dual = context.state["dual"]
        return Values(dual * nll, {"nll": nll.detach(), "dual": torch.full_like(nll.detach(), dual)})

    @override
    def after_step(self, measured: Mapping[str, float], context: Context[Trains]) -> None:
        if context.step >= self.warmup:
            # ascent on lambda of the Lagrangian; clamped, as a multiplier of an inequality is >= 0
            moved = context.state["dual"] + self.rate * (measured["nll"] - context.state["epsilon"])
            context.state["dual"] = max(0.0, moved)
