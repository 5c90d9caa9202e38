"""Gradient ascent: the baseline that raises the training loss of forget items without end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.data.base import Batch, Split, check_content
from unlearn.models.capabilities import HasLikelihood, Trains, TrainsAgainst
from unlearn.objectives.base import Context, Objective, Values


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Objective[Trains]):
    """Raise the model's own training loss on forget items: L = -loss, in the unit that the wrapper states.

    For a language model L is log p(y | x) per token of the answer, for a flow minus the bits per dimension, for a
    diffusion model minus the denoising loss as in training, conditions that are dropped included. Nothing bounds L from
    below: without a retain term the model collapses, which is what this baseline is kept for. With ``training_loss`` on
    the retain items it is the gradient difference.

    Args:
        reduction: ``mean`` over the tokens of an answer (the dimensions of an item), as in training, or their ``sum``;
            a model without a likelihood has the mean only.

    Reference:
        Jang et al., Knowledge Unlearning for Mitigating Privacy Risks in Language Models, 2023 (the sum).
        arXiv:2210.01504. The mean, and the gradient difference, as in Maini et al., TOFU, 2024. arXiv:2401.06121.
    """

    reduction: Literal["mean", "sum"] = "mean"

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        instead = "Type forget={name: denoising_ascent, states: {source: generated}}, or data with images."
        check_content(splits[split], f"{split}=gradient_ascent", instead)

    @override
    def attach(self, model: Trains) -> None:
        """Refuse a GAN, whose loss is known only to its adversary, and a sum over dimensions that a model lacks."""
        if isinstance(model, TrainsAgainst):
            raise RecipeError(
                f"gradient_ascent: a {type(model).__name__} has no training loss of its own, but one against an "
                "adversary. Type forget=adapt_then_unlearn, or another objective for GANs."
            )
        if self.reduction == "sum" and not isinstance(model, HasLikelihood):
            raise RecipeError(
                f"gradient_ascent: a {type(model).__name__} has no likelihood whose dimensions could be summed. "
                "Type forget.reduction=mean."
            )

    def __call__(self, model: Trains, batch: Batch, context: Context[Trains]) -> Values:
        """Return minus the training loss per item, (B,), or times the item's dimensions (``sum``)."""
        loss = model.training_loss(batch, context.randomness)
        value = -loss
        if self.reduction == "sum" and isinstance(model, HasLikelihood):
            value = value * model.dimensions(batch).clamp(min=1)
        return Values(value, {"training_loss": loss.detach()})
