"""Elastic weight consolidation: parameters that matter to what is kept hold tighter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.data.base import Split
from unlearn.distributed import rank, sum_over_ranks, world_size
from unlearn.errors import RecipeError
from unlearn.models.base import HasLatents, HasLikelihood, Trains
from unlearn.objectives.base import Context, ParameterObjective
from unlearn.randomness import Randomness
from unlearn.ranges import above, at_least


@dataclass(frozen=True, kw_only=True)
class EWC(ParameterObjective):
    """strength / 2 sum_i F_i (theta_i - theta_target,i)^2, F the diagonal of the Fisher information on kept items.

    F is computed once, at the target, as the mean over items of the squared gradient of one item's value: of its log
    likelihood where the model has one (nats), else of its training loss (the empirical Fisher information of both). A
    model that makes images of latents is taken as N(G(z), 1) around each image of a drawn z, the same for all pixels:
    F_i = E_z |dG(z) / d theta_i|^2, estimated by the squared gradient of v . G(z), v standard normal, for ``draws`` v.

    Args:
        strength: lambda of the paper, > 0.
        items: of the split, drawn by the seed; of them F is the mean.
        draws: see above.

    State:
        fisher: F of each parameter that may move, by its name.

    Reference:
        Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, eq. 3. arXiv:1612.00796.
        For a generator: Li et al., Few-shot Image Generation with Elastic Weight Consolidation, 2020. arXiv:2012.02780,
        where the gradient is that of a discriminator's loss; here none is asked for.
    """

    strength: float = 1.0
    items: int = 64
    draws: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        above(self, strength=0)
        at_least(self, items=1, draws=1)

    def prepare(self, model: Any, context: Context) -> None:
        """Compute F, each rank for its share of the items."""
        names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        anchors = dict(context.reference().named_parameters())
        if lost := [name for name in names if anchors.get(name) is names[name] or name not in anchors]:
            raise RecipeError(
                f"ewc: the target has no parameter {lost[0]!r}. Drop ewc, or let only the target's own parameters move "
                "(scope)."
            )
        context.state["fisher"] = fisher(model, names, context, self.items, self.draws)

    def penalty(self, parameters: Mapping[str, Tensor], context: Context) -> Tensor:
        """Return the penalty, a scalar."""
        anchors: dict[str, Any] = dict(context.reference().named_parameters())
        found = context.state["fisher"]
        terms = [
            (found[name].to(value) * (value - anchors[name].detach()).square()).sum()
            for name, value in parameters.items()
        ]
        return self.strength / 2 * torch.stack(terms).sum()


def fisher(
    model: Any, parameters: Mapping[str, Tensor], context: Context, items: int, draws: int = 1
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of the model as it is, the same on every rank."""
    split = context.splits[context.split]
    stream = Randomness(context.randomness.seed, "fisher")
    ids = split.ids
    if len(ids) > items:
        ids = ids[stream.permutation(len(ids))[:items]]
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    with torch.enable_grad():
        for item in ids[rank() :: world_size()]:
            for value in _values(model, split, item[None], context, stream, draws):
                gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        total[name] += gradient.double().square()
    times = len(ids) * (draws if _is_generator(model) else 1)
    return {name: (sum_over_ranks(square) / times).to(parameters[name].dtype) for name, square in total.items()}


def _is_generator(model: Any) -> bool:
    return isinstance(model, HasLatents) and not isinstance(model, HasLikelihood)


def _values(model: Any, split: Split, ids: Tensor, context: Context, stream: Randomness, draws: int) -> Any:
    """Yield the scalars whose squared gradients are summed for one item."""
    if _is_generator(model):
        ids = ids.to(context.device)
        z = model.latent(ids, stream)
        for number in range(draws):
            images = model.synthesis(model.mapping(z))
            v = stream.child(f"v {number}").normal(ids, tuple(images.shape[1:]), images.dtype)
            yield (v * images).sum()
        return
    batch = context.batch(split.name, ids)
    if isinstance(model, HasLikelihood):
        yield model.log_prob(batch, stream).sum()
    elif isinstance(model, Trains):
        yield model.training_loss(batch, stream).sum()
    else:
        raise RecipeError(f"ewc: a {type(model).__name__} has neither a likelihood nor a training loss.")
