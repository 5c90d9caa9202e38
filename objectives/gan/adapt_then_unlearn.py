"""Adapt-then-Unlearn: a copy learns what is to be forgotten, and the model is pushed away from its parameters."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt
from unlearn.data.base import Batch, Split, check_content
from unlearn.models.base import frozen
from unlearn.models.capabilities import AdversarialGenerator
from unlearn.objectives.base import AuxiliaryNetwork, Context, Objective, ParameterObjective, Values
from unlearn.objectives.common.ewc import fisher
from unlearn.objectives.common.weight_anchor import pull


@dataclass(frozen=True, kw_only=True)
class AdaptThenUnlearn(ParameterObjective[AdversarialGenerator]):
    """Push the parameters away from those of copies that were trained on the forget items.

    First, before the model's first step, ``models`` copies of it are each trained for ``adapt_steps`` against a
    discriminator of their own on the forget images, held by ``adapt_ewc / 2 sum_i F_i (theta_i - theta_target,i)^2``.
    Then they are frozen, and the model goes on training (``retain=training_loss``: the adversarial loss on the retain
    images) with a repulsion, the mean over copies, of delta^2, the squared distance of its parameters from the copy's:

    ``inverse`` gamma / delta^2, ``negative`` -gamma delta^2, ``exponential`` scale exp(-gamma delta^2).

    The paper's delta^2 is the squared Euclidean distance, whose exponential is 0 in floating point for large models;
    the default follows it with ``inverse``. ``per_tensor`` is the mean over tensors of the mean squared difference, so
    that small tensors weigh as much as large ones. The released code (``released``) repels once, from the mean over
    the K copies of the per-tensor distance, multiplied by K^2 / 2 (it sums over copies, and then multiplies by K / 2
    where it would divide by K); scale is 100 there, and gamma 1.2 (MNIST) or 0.8 (faces).

    gamma must fit delta. At the copies' own distance the repulsion's gradient has the norm 2 gamma / delta^3,
    2 gamma delta, or 2 gamma scale delta exp(-gamma delta^2), by which it is compared with the training loss's
    (``grad_norm``). With delta^2 about 460, after 200 steps of a copy with 95,000 parameters, ``inverse`` with gamma 1
    has 2e-4 where the training loss has 0.1: nothing comes of it. ``exponential`` with gamma about 1 / delta^2 acts and
    then fades. Most of the gradient of ``per_tensor`` falls on tensors of a few values (biases, noise strengths), and
    with the released scale it ruined samples without fewer of what was to be forgotten. The default distance needs no
    scale for tensors, and only gamma to be chosen.

    Differences: a copy and its discriminator step together, not in turns; F is that of ``ewc`` for a generator, which
    needs no discriminator, and its items are the retain items. A copy's discriminator sees images as they are, also
    where the model's sees them augmented, and a copy's path lengths are not penalised.

    Args:
        repulsion: see above.
        gamma: see above, > 0.
        scale: of the exponential one, > 0.
        distance: ``squared`` Euclidean, ``per_tensor``, or ``released``.
        models: number of copies.
        adapt_steps: steps of each.
        adapt_lr: their learning rate; null takes the model's.
        adapt_ewc: weight of the consolidation of the copies, 0 for none.
        adapt_items: number of latents whose mean is F (the code takes 32).

    Reference:
        Tiwary et al., Adapt then Unlearn: Exploring Parameter Space Semantics for Unlearning in Generative Adversarial
        Networks, 2025. arXiv:2309.14054
    """

    repulsion: Literal["inverse", "negative", "exponential"] = "inverse"
    gamma: PositiveFloat = 1.0
    scale: PositiveFloat = 100.0
    distance: Literal["squared", "per_tensor", "released"] = "squared"
    models: PositiveInt = 1
    adapt_steps: PositiveInt = 300
    adapt_lr: PositiveFloat | None = None
    adapt_ewc: NonNegativeFloat = 1.0
    adapt_items: PositiveInt = 32

    prepares_with: ClassVar[tuple[str, ...]] = ("adapt_steps", "adapt_items")

    @override
    def check(self, splits: Mapping[str, Split], split: str) -> None:
        """Refuse items without images: copies are trained on them."""
        check_content(splits[split], f"{split}=adapt_then_unlearn", "Give data with images.")
        dataset = splits[split].dataset
        if "image" not in dataset.batch(splits[split].ids[:1]):
            raise RecipeError(f"{split}=adapt_then_unlearn trains copies on images, and the {split} items have none.")

    @override
    def auxiliary(
        self,
        model: AdversarialGenerator,
        teacher: Callable[[], AdversarialGenerator],
        split: str,
        randomness: Randomness,
    ) -> AuxiliaryNetwork:
        def build() -> Adapted:
            return Adapted([Pair(model, randomness.child(str(number))) for number in range(self.models)])

        return AuxiliaryNetwork(
            name="adapted",
            build=build,
            groups={split: {"adapts": Adapts(term=self)}},
            optim=lambda optim: replace(optim, lr=self.adapt_lr or optim.lr, schedule="constant"),
            warmup=self.adapt_steps,
            rests=True,
        )

    @override
    def penalty(self, parameters: Mapping[str, Tensor], context: Context[AdversarialGenerator]) -> Tensor:
        """Return the repulsion, a scalar."""
        adapted: Adapted = context.beside()
        far = torch.stack([self._far(parameters, pair.generator) for pair in adapted])
        if self.distance == "released":
            return self._repelled(far.mean() * len(far) ** 2 / 2)
        return self._repelled(far).mean()

    def _far(self, parameters: Mapping[str, Tensor], generator: AdversarialGenerator) -> Tensor:
        """Return delta^2 from one copy, over the parameters that are trained, which alone differ from the copy's."""
        other = dict(generator.named_parameters())
        squares = [(value - other[name].detach()).square() for name, value in parameters.items()]
        if self.distance == "squared":
            return torch.stack([square.sum() for square in squares]).sum()
        return torch.stack([square.mean() for square in squares]).mean()

    def _repelled(self, far: Tensor) -> Tensor:
        if self.repulsion == "inverse":
            # at the copy itself the gradient would be infinite
            return self.gamma / far.clamp(min=torch.finfo(far.dtype).tiny ** 0.5)
        return -self.gamma * far if self.repulsion == "negative" else self.scale * torch.exp(-self.gamma * far)


@dataclass(frozen=True, kw_only=True)
class Adapts(Objective[AdversarialGenerator]):
    """The copies' own losses and their discriminators', in one sum: each gradient reaches its own network alone."""

    term: AdaptThenUnlearn

    @override
    def prepare(self, model: AdversarialGenerator, context: Context[AdversarialGenerator]) -> None:
        """Compute the Fisher information of the copies, which still are the target."""
        if self.term.adapt_ewc:
            retain = "retain" if "retain" in context.splits else context.split
            here = replace(context, split=retain)
            trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
            context.state["fisher"] = fisher(model, trained, here, self.term.adapt_items)
            context.state["anchors"] = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def __call__(self, model: AdversarialGenerator, batch: Batch, context: Context[AdversarialGenerator]) -> Values:
        """Return the sum over copies of both losses and the consolidation, (B,)."""
        total = batch["id"].new_zeros(len(batch["id"]), dtype=model.dtype)
        adapted: Adapted = context.beside()
        for number, pair in enumerate(adapted):
            draw = context.randomness.child(str(number))
            with frozen(pair.discriminator):
                total = total + pair.generator.adversarial_loss(pair.discriminator, batch, draw)[0]
            total = total + self._held(pair.generator, context)
            with frozen(pair.generator):
                total = total + pair.generator.adversary_loss(pair.discriminator, batch, draw)[0]
        return Values(total)

    def _held(self, generator: AdversarialGenerator, context: Context[AdversarialGenerator]) -> Tensor | float:
        """Return ``adapt_ewc / 2 sum_i F_i (theta_i - theta_target,i)^2``."""
        if not self.term.adapt_ewc:
            return 0.0
        fisher_of, anchors = context.state["fisher"], context.state["anchors"]
        held = {name: value for name, value in generator.named_parameters() if name in fisher_of}
        return self.term.adapt_ewc / 2 * pull(held, anchors, fisher_of)


class Pair(nn.Module):
    """A copy of a generator, of which the same parameters are trained, and a new discriminator."""

    def __init__(self, model: AdversarialGenerator, randomness: Randomness) -> None:
        super().__init__()
        self.generator = copy.deepcopy(model)
        self.generator.paths = 0.0  # a penalty would need a mean length of its own
        self.discriminator = model.adversary(randomness)


class Adapted(nn.Module):
    """Several pairs."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)  # type: ignore[arg-type]
