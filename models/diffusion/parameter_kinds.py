"""Kinds of a diffusion model's parameters, by the type of their modules, so that every architecture works."""

import re
from collections.abc import Iterator
from typing import Any

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from unlearn.models.diffusion.text_encoder import TextSide

KINDS = (
    "cross_attention",
    "cross_attention_kv",
    "cross_attention_q",
    "self_attention",
    "feed_forward",
    "not_cross_attention",
    "denoiser",
    "text_encoder",
    "text_encoder_mlp",
    "text_encoder_last_attention",
    "text_embeddings",
)
"""Kinds of parameters that a recipe's ``scope.kinds`` may name, besides the kinds of layer that every model has."""


def parameter_kinds(model: nn.Module, denoiser: nn.Module, text: TextSide | None) -> dict[str, list[str]]:
    """Return the names of the parameters of each kind, in the model's order; a kind that is not there is empty.

    ``denoiser`` and ``text`` are the parts of ``model``, a ``Diffusion``.
    """
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for name, kind in (*_of_denoiser(denoiser), *(_of_text(text) if text is not None else ())):
        found[kind].add(name)
    found["not_cross_attention"] = found["denoiser"] - found["cross_attention"]
    order = [name for name, _ in model.named_parameters()]
    return {kind: [name for name in order if name in names] for kind, names in found.items()}


def _of_denoiser(denoiser: nn.Module) -> Iterator[tuple[str, str]]:
    for name, _ in denoiser.named_parameters(prefix="denoiser"):
        yield name, "denoiser"
    for place, module in denoiser.named_modules(prefix="denoiser"):
        if isinstance(module, Attention):
            for own, _ in module.named_parameters():
                name = f"{place}.{own}"
                yield name, "cross_attention" if module.is_cross_attention else "self_attention"
                if module.is_cross_attention and own.startswith(("to_k.", "to_v.")):
                    yield name, "cross_attention_kv"
                if module.is_cross_attention and own.startswith("to_q."):
                    yield name, "cross_attention_q"
        elif isinstance(module, FeedForward):
            for name, _ in module.named_parameters(prefix=place):
                yield name, "feed_forward"


def _of_text(text: TextSide) -> Iterator[tuple[str, str]]:
    """Yield (name, kind), without the last layer of SDXL's first encoder, which it does not use."""
    encoder: Any
    for index, encoder in enumerate(text.encoders):
        used = encoder.config.num_hidden_layers - (1 if index + 1 < len(text.encoders) else 0)
        for name, _ in encoder.named_parameters(prefix=f"text.encoders.{index}"):
            layer = re.search(r"\.layers\.(\d+)\.", name)
            number = int(layer[1]) if layer else -1
            if number >= used or ("final_layer_norm" in name and used < encoder.config.num_hidden_layers):
                continue
            yield name, "text_encoder"
            if ".mlp." in name:
                yield name, "text_encoder_mlp"
            if ".self_attn." in name and number == used - 1:
                yield name, "text_encoder_last_attention"
            if "_embedding." in name:
                yield name, "text_embeddings"
