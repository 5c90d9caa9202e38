"""Kinds of a GAN's parameters, by the type of their modules."""

from __future__ import annotations

from torch import nn

from unlearn.models.gan.stylegan2.generator import StyledConv

KINDS = ("mapping", "synthesis", "to_rgb", "affine", "style_convolution", "noise", "constant")
"""Kinds of parameters that a recipe's ``scope.kinds`` may name, besides the kinds of layer that every model has."""


def parameter_kinds(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the parameters of each kind, for ``scope.kinds``; a kind that is not there is empty."""
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    convolutions = [place for place, module in model.named_modules() if isinstance(module, StyledConv)]
    for name, _ in model.named_parameters():
        kinds["mapping" if ".mapping." in name else "synthesis"].append(name)
        if ".torgb." in name:
            kinds["to_rgb"].append(name)
        if ".affine." in name:
            kinds["affine"].append(name)
        if name.rpartition(".")[0] in convolutions and not name.endswith("noise_strength"):
            kinds["style_convolution"].append(name)
        if name.endswith("noise_strength"):
            kinds["noise"].append(name)
        if name.endswith(".const"):
            kinds["constant"].append(name)
    return kinds
