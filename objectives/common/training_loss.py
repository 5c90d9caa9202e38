"""The model's own training loss, as a retain term or as a baseline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.distributed import sum_over_ranks
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeInt
from unlearn.data.base import Batch, Split, check_content
from unlearn.models.base import frozen
from unlearn.models.capabilities import Model, Trains, TrainsAgainst
from unlearn.models.gan.stylegan2.augment import Augment
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, Values

DECAY = 0.01
"""Share of a batch in the moving mean of path lengths."""


@dataclass(frozen=True, kw_only=True)
class TrainingLoss(Objective[Trains]):
    """Go on training: the wrapper's loss per item, in the unit that the wrapper states.

    On retain data it keeps what should stay; alone, it is plain fine-tuning. A model that is trained against another
    network (a GAN) gets one, which takes a step on its own loss before each step of the model.

    Args:
        warmup: of a model that is trained against another network: steps that the other takes alone before the first
            of the model, >= 0, as a new one knows nothing at first; other models have no such steps.

    State, of a model whose loss penalises path lengths:
        length: their mean so far: a_n = a_{n-1} + max(0.01, 1 / n) (mean of the n-th batch - a_{n-1}), which from the
            hundredth penalty on is the moving mean of StyleGAN2 (appendix B), and before it does not lean to 0.
        penalties: n. At the first the length is only measured.
    """

    warmup: NonNegativeInt = 0

    prepares_with: ClassVar[tuple[str, ...]] = ("warmup",)

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        check_content(splits[split], f"{split}=training_loss", f"Type {split}=null, or data with images.")

    def auxiliary(
        self, model: Trains, teacher: Callable[[], Trains], split: str, randomness: Randomness
    ) -> AuxiliaryNetwork | None:
        """Return the network that the model is trained against, if it is."""
        if not isinstance(model, TrainsAgainst):
            if self.warmup:
                raise RecipeError(
                    f"{split}=training_loss: a {type(model).__name__} is trained against no other network, which could "
                    "warm up. Type warmup=0."
                )
            return None
        own = AdversaryLoss() if model.augment is None else AugmentedAdversaryLoss(augment=model.augment)
        return AuxiliaryNetwork(
            name="adversary",
            build=lambda: model.adversary(randomness),
            groups={split: {"adversary": own}},
            optim=lambda optim: optim,
            warmup=self.warmup,
        )

    @override
    def prepare(self, model: Trains, context: Context[Trains]) -> None:
        if isinstance(model, TrainsAgainst) and model.paths:
            context.state.update(length=0.0, penalties=0)

    def followed(self, context: Context[Trains]) -> bool:
        """Whether there is a mean length to follow."""
        return "length" in context.state

    def __call__(self, model: Trains, batch: Batch, context: Context[Trains]) -> Values:
        """Return the training loss per item, (B,)."""
        if isinstance(model, TrainsAgainst):
            augmented = context.shared.get(("augmented", context.split), 0.0)
            known = context.state["length"] if context.state.get("penalties") else None
            with frozen(context.beside()):
                loss, lengths = model.adversarial_loss(context.beside(), batch, context.randomness, augmented, known)
            if lengths is not None:
                _count("lengths", lengths, context)
        else:
            loss = model.training_loss(batch, context.randomness)
        return Values(loss, {"training_loss": loss.detach()})

    def after_step(self, measured: Mapping[str, float], context: Context[Trains]) -> None:
        """Move the mean length to that of all ranks' items, where lengths were penalised."""
        total, items = _counted("lengths", context)
        if items:
            state, penalties = context.state, context.state["penalties"] + 1
            length = state["length"] + max(DECAY, 1 / penalties) * (total / items - state["length"])
            state.update(length=length, penalties=penalties)


@dataclass(frozen=True, kw_only=True)
class AdversaryLoss(Objective[TrainsAgainst]):
    """The own loss of the network that a model is trained against."""

    def __call__(self, model: TrainsAgainst, batch: Batch, context: Context[TrainsAgainst]) -> Values:
        """Return the loss per item, (B,)."""
        return Values(model.adversary_loss(context.beside(), batch, context.randomness)[0])


@dataclass(frozen=True, kw_only=True)
class AugmentedAdversaryLoss(Objective[TrainsAgainst]):
    """The same where images are augmented (``model.augment``), with a probability that follows the logits' signs.

    The model's own loss, which comes after it in a step, takes the probability from ``context.shared``.

    State:
        p: the probability of each transform; it is adapted during warm-up as well.
        signs: sum of the signs of the real images' logits since its last update, over all ranks.
        images: number of these images.
        steps: taken since.
    """

    augment: Augment
    follows: ClassVar[bool] = True

    @override
    def prepare(self, model: TrainsAgainst, context: Context[TrainsAgainst]) -> None:
        context.state.update(p=0.0, signs=0.0, images=0.0, steps=0)

    def __call__(self, model: TrainsAgainst, batch: Batch, context: Context[TrainsAgainst]) -> Values:
        """Return the loss per item, (B,)."""
        p = context.state["p"]
        loss, logits = model.adversary_loss(context.beside(), batch, context.randomness, p)
        context.shared["augmented", context.split] = p
        signs = logits.sign()
        _count("signs", signs, context)
        return Values(loss, {"sign": signs, "p": torch.full_like(signs, p)})

    def after_step(self, measured: Mapping[str, float], context: Context[TrainsAgainst]) -> None:
        """Count the signs of all ranks and, at every ``augment.every``-th step, adapt the probability."""
        state, (signs, images) = context.state, _counted("signs", context)
        signs, images, steps = state["signs"] + signs, state["images"] + images, state["steps"] + 1
        if steps == self.augment.every:
            state["p"] = self.augment.moved(state["p"], signs / images, images)
            signs, images, steps = 0.0, 0.0, 0
        state.update(signs=signs, images=images, steps=steps)


def _count(what: str, values: Tensor, context: Context[Model]) -> None:
    """Add values (B,) of a micro-batch to what this rank has seen in this step."""
    seen = torch.stack([values.sum().double(), values.new_tensor(len(values)).double()])
    context.shared[what, context.split] = context.shared.get((what, context.split), 0) + seen


def _counted(what: str, context: Context[Model]) -> tuple[float, float]:
    """Return the sum of all ranks' values in this step, and their number."""
    nothing = torch.zeros(2, dtype=torch.float64, device=context.device)
    total, number = sum_over_ranks(context.shared.get((what, context.split), nothing)).tolist()
    return total, number
