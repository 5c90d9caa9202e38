"""Scope: which parameters are trained."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.randomness import Randomness

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "convolution": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d),
    "embedding": (nn.Embedding,),
    "normalisation": (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm),
}
"""Kinds of layer by name. A wrapper adds its own by an attribute ``layer_kinds`` of the same form, or, for kinds that
no type of layer tells, by a method ``parameter_kinds`` that returns the names of the parameters of each."""


@dataclass(frozen=True)
class Scope(ABC):
    """Chooses the trained parameters by name, and optionally single entries of them by a mask."""

    needs_gradient: ClassVar[bool] = False
    """Whether ``masks`` needs the forget loss's gradient."""

    @property
    def by_training_loss(self) -> bool:
        """Whether that gradient is of the training loss on the forget items, whatever the forget terms are."""
        return False

    is_adapter: ClassVar[bool] = False
    """Whether the target's own weights are frozen, so that ``off`` restores the target."""

    def attach(self, model: nn.Module, randomness: Randomness) -> None:
        """Add the parameters that the scope brings along, if any (an adapter)."""

    def detach(self, model: nn.Module, folder: Path) -> None:
        """Merge what ``attach`` added into the weights; ``folder`` is the run directory."""

    def off(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the trained model is the target again, for a scope that ``is_adapter``."""
        return nullcontext()

    @abstractmethod
    def select(self, model: nn.Module) -> list[str]:
        """Return the names of the trained parameters, in the model's order."""

    def masks(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one bool mask per parameter (True is trained) from the forget loss's gradient; empty for no mask."""
        return {}


@dataclass(frozen=True)
class All(Scope):
    """Every parameter that a loss can reach."""

    @override
    def select(self, model: nn.Module) -> list[str]:
        return trainable(model)


@dataclass(frozen=True)
class Pattern(Scope):
    """Parameters whose name matches a regular expression.

    Args:
        include: expressions searched in the name; any match trains a parameter.
        exclude: expressions; any match freezes it.
    """

    include: list[str] = field(default_factory=lambda: [".*"])
    exclude: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for expression in (*self.include, *self.exclude):
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression: {error}") from error

    def matching(self, names: Iterable[str]) -> list[str]:
        """Return the names that match, in their order."""
        found = [name for name in names if any(re.search(expression, name) for expression in self.include)]
        return [name for name in found if not any(re.search(expression, name) for expression in self.exclude)]

    def select(self, model: nn.Module) -> list[str]:
        """Return matching names; matching nothing is an error."""
        names = trainable(model)
        chosen = self.matching(names)
        if not chosen:
            raise RecipeError(
                f"scope: include={self.include} exclude={self.exclude} matches no parameter. "
                f"Names look like: {', '.join(names[:: max(1, len(names) // 8)])}. "
                "Type scope.include=[EXPRESSION] with one that matches, or scope=all."
            )
        return chosen


@dataclass(frozen=True)
class ByKind(Scope):
    """Parameters of the given kinds.

    Args:
        kinds: names from KINDS, or those that the wrapper adds (for diffusion models: cross_attention,
            cross_attention_kv, cross_attention_q, self_attention, feed_forward, not_cross_attention, denoiser,
            text_encoder, text_encoder_mlp, text_encoder_last_attention, text_embeddings;
            for GANs: mapping, synthesis, to_rgb, affine, style_convolution, noise, constant).
    """

    kinds: list[str] = field(default_factory=lambda: ["linear", "convolution"])

    def select(self, model: nn.Module) -> list[str]:
        """Return the parameters of the kinds; a kind of layer stands for the parameters directly inside such layers.

        Raises:
            RecipeError: a kind is unknown, a kind that the wrapper names has no parameter, or none of all kinds has.
        """
        layers = {**KINDS, **getattr(model, "layer_kinds", {})}
        named: dict[str, list[str]] = getattr(model, "parameter_kinds", dict)()
        chosen: set[str] = set()
        for kind in self.kinds:
            if kind in named:
                if not named[kind]:
                    others = ", ".join(other for other, names in named.items() if names)
                    raise RecipeError(
                        f"scope.kinds: the model has no parameter of the kind {kind!r}. It has: {others}."
                    )
                chosen.update(named[kind])
            elif kind in layers:
                found = ((prefix, m) for prefix, m in model.named_modules() if isinstance(m, layers[kind]))
                chosen.update(name for prefix, m in found for name, _ in m.named_parameters(prefix, recurse=False))
            else:
                raise RecipeError(f"scope.kinds: there is no kind {kind!r}. {did_you_mean(kind, [*layers, *named])}")
        if ordered := [name for name in trainable(model) if name in chosen]:
            return ordered
        types = sorted({type(m).__name__ for m in model.modules() if any(True for _ in m.parameters(recurse=False))})
        raise RecipeError(
            f"scope.kinds={self.kinds} matches no parameter; the model's layers with parameters are "
            f"{', '.join(types)}. Type scope=all, or scope.name=pattern with scope.include=[EXPRESSION]."
        )


@dataclass(frozen=True)
class Saliency(Scope):
    """The entries on which the forget loss's gradient is largest; all others are frozen.

    Args:
        share: share of all entries that are trained, in (0, 1].
        include: as in ``pattern``: the parameters among which entries are chosen.
        loss: whose gradient on the forget items counts: that of the ``forget`` terms of the recipe, or that of the
            model's ``training`` loss, as in SalUn, whose mask does not depend on the objective.

    Reference:
        Fan et al., SalUn, 2024, eq. 4 (a hard threshold on |gradient|, by default its median). arXiv:2310.12508
    """

    share: float = 0.5
    include: list[str] = field(default_factory=lambda: [".*"])
    loss: Literal["forget", "training"] = "forget"

    needs_gradient: ClassVar[bool] = True

    @override
    @property
    def by_training_loss(self) -> bool:
        return self.loss == "training"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must lie in (0, 1]")

    @override
    def select(self, model: nn.Module) -> list[str]:
        return Pattern(self.include).select(model)

    def masks(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks of the largest ``share`` of entries over all parameters together."""
        magnitudes = torch.cat([gradient.abs().reshape(-1) for gradient in gradients.values()])
        keep = max(1, round(self.share * len(magnitudes)))
        threshold = torch.kthvalue(magnitudes, len(magnitudes) - keep + 1).values
        if threshold == 0:  # fewer entries than asked for have a gradient: those, and not the ties at zero
            if not (magnitudes > 0).any():
                raise RecipeError("scope=saliency: the forget loss has no gradient on any entry, so there is no mask.")
            return {name: gradient != 0 for name, gradient in gradients.items()}
        return {name: gradient.abs() >= threshold for name, gradient in gradients.items()}


def trainable(model: nn.Module) -> list[str]:
    """Return the names of the parameters that a loss can reach: those that the wrapper names, or all."""
    named: Callable[[], list[str]] | None = getattr(model, "trainable", None)
    return named() if named else [name for name, _ in model.named_parameters()]


class HeldEntries:
    """Puts masked-out entries back after every step, so that weight decay and momentum cannot change them."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        self._held = [
            (parameters[name], ~mask, parameters[name].detach()[~mask].clone()) for name, mask in masks.items()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Write the initial values of the masked-out entries back."""
        for parameter, held, values in self._held:
            parameter[held] = values


def scope_table(model: nn.Module, trained: Collection[str], masks: Mapping[str, Tensor]) -> list[tuple[str, int, int]]:
    """Return rows (top-level module, trained entries, all entries), for display."""
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault(".".join(name.split(".")[:3]), [0, 0])
        if name in trained:
            row[0] += int(masks[name].sum()) if name in masks else parameter.numel()
        row[1] += parameter.numel()
    return [(place, free, total) for place, (free, total) in rows.items()]
