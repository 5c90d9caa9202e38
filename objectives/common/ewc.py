"""Elastic weight consolidation: the more a parameter matters to what is kept, the stronger its anchor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeGuard

import torch
from torch import Tensor

from unlearn.core.distributed import rank, sum_over_ranks, world_size
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt
from unlearn.data.base import Split
from unlearn.models.capabilities import HasLatents, HasLikelihood, ImageGenerator, Model, Trains
from unlearn.models.gan.inversion import Inversion
from unlearn.objectives.base import Context, ParameterObjective
from unlearn.objectives.common.weight_anchor import anchors_of, pull
from unlearn.objectives.gan.latent_cache import offsets, remember_latents


@dataclass(frozen=True, kw_only=True)
class EWC(ParameterObjective[Model]):
    """strength / 2 sum_i F_i (theta_i - theta_target,i)^2, F the diagonal of the Fisher information on kept items.

    F is computed once, at the target, as the mean over items of the squared gradient of one item's value: of its log
    likelihood where the model has one (nats), else of its training loss (the empirical Fisher information of both). A
    model that makes images of latents is taken as N(G(z), 1) around each image of a drawn z, the same for all pixels:
    F_i = E_z |dG(z) / d theta_i|^2, estimated by the squared gradient of v . G(z), v standard normal, for ``draws`` v.
    Pixels are summed, so ``strength`` goes with 1 / (their number) where the other terms are means over pixels.

    Args:
        strength: lambda of the paper, > 0.
        items: of the split, drawn by the seed; of them F is the mean.
        draws: see above.
        latents: of a model that makes images of latents: ``drawn`` of its prior, one per retain item, or ``near`` the
            forget items, as SUGAR has it: w_u + D, w_u their latents in turn, D as the neighbours of ``guide``. A
            mapping network, which no such latent passes, then has F = 0.
        reach: with ``near``, the largest |D| per layer; null takes half of |w_u - w_avg|.
        inversion: with ``near``, how the latents of images are found.
        encoder: TorchScript file that maps images to latents, in place of the inversion.

    State:
        fisher: F of each trained parameter, by its name.

    Reference:
        Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, eq. 3. arXiv:1612.00796.
        For a generator: Li et al., Few-shot Image Generation with Elastic Weight Consolidation, 2020. arXiv:2012.02780,
        where the gradient is that of a discriminator's loss; here none is asked for. Latents near the forget items: as
        in SUGAR (Nguyen et al., 2026, arXiv:2512.06562).
    """

    strength: PositiveFloat = 1.0
    items: PositiveInt = 64
    draws: PositiveInt = 1
    latents: Literal["drawn", "near"] = "drawn"
    reach: NonNegativeFloat | None = None
    inversion: Inversion = field(default_factory=Inversion)
    encoder: str | None = None

    prepares_with: ClassVar[tuple[str, ...]] = ("items", "draws", "inversion")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latents == "drawn" and self.reach is not None:
            raise ValueError("reach is that of latents near the forget items; type latents: near, or drop reach")

    def prepare(self, model: Model, context: Context[Model]) -> None:
        """Compute F, each rank for its share of the items."""
        names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        anchors_of(names, context, "ewc")  # refuses a parameter that the target lacks
        latents = None
        if self.latents == "near":
            if not _is_generator(model):
                raise RecipeError(
                    "ewc: latents=near asks for a model that makes images of latents; this is a "
                    f"{type(model).__name__}. Drop latents."
                )
            latents = self.near(model, context)
        context.state["fisher"] = fisher(model, names, context, self.items, self.draws, latents)

    def near(self, model: ImageGenerator, context: Context[Model]) -> Callable[[Tensor], Tensor]:
        """Return what maps numbers (b,) to latents near the forget items, (b, num_ws, w_dim), one per number."""
        forget = replace(context, split="forget")
        name = remember_latents(model, forget, self.encoder or self.inversion)
        stream = Randomness(context.randomness.seed, "ewc/near")
        ids = context.splits["forget"].ids

        def latents(numbers: Tensor) -> Tensor:
            items = ids[numbers.cpu() % len(ids)].to(numbers.device)
            w = context.recall(name, "forget", items).to(model.dtype)
            return w + offsets(model, w, numbers, stream, self.reach)

        return latents

    def penalty(self, parameters: Mapping[str, Tensor], context: Context[Model]) -> Tensor:
        """Return the penalty, a scalar."""
        return self.strength / 2 * pull(parameters, anchors_of(parameters, context, "ewc"), context.state["fisher"])


def fisher(
    model: Model,
    parameters: Mapping[str, Tensor],
    context: Context[Model],
    items: int,
    draws: int = 1,
    latents: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of the model as it is, the same on every rank.

    At most ``items`` of the term's split count. A generator may have ``latents`` in their place, which maps the
    numbers 0, 1, ..., (b,), to latents; None draws them of the prior.
    """
    split = context.splits[context.split]
    stream = Randomness(context.randomness.seed, "fisher")
    ids = split.ids if latents is None else torch.arange(items)  # which draw latents, whatever the items are
    if len(ids) > items:
        ids = ids[stream.permutation(len(ids))[:items]]
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    with torch.enable_grad():
        for item in ids[rank() :: world_size()]:
            # one backward pass per item: the square of a batch's gradient is not the sum of squares
            for value in _values(model, split, item[None], context, stream, draws, latents):
                gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        total[name] += gradient.double().square()
    times = len(ids) * (draws if _is_generator(model) else 1)
    return {name: (sum_over_ranks(square) / times).to(parameters[name].dtype) for name, square in total.items()}


def _is_generator(model: Model) -> TypeGuard[ImageGenerator]:
    return isinstance(model, HasLatents) and not isinstance(model, HasLikelihood)


def _values(
    model: Model,
    split: Split,
    ids: Tensor,
    context: Context[Model],
    stream: Randomness,
    draws: int,
    latents: Callable[[Tensor], Tensor] | None,
) -> Iterator[Tensor]:
    """Yield the scalars whose squared gradients are summed for one item."""
    if _is_generator(model):
        ids = ids.to(context.device)
        for number in range(draws):
            w = model.mapping(model.latent(ids, stream)) if latents is None else latents(ids)
            images = model.synthesis(w)
            v = stream.child(f"v {number}").normal(ids, tuple(images.shape[1:]), images.dtype)
            yield (v * images).sum()  # E_v of its squared gradient is |dG / d theta|^2, summed over pixels
        return
    batch = context.batch(split.name, ids)
    if isinstance(model, HasLikelihood):
        yield model.log_prob(batch, stream).sum()
    elif isinstance(model, Trains):
        yield model.training_loss(batch, stream).sum()
    else:
        raise RecipeError(f"ewc: a {type(model).__name__} has neither a likelihood nor a training loss.")
