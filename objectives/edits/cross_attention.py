"""The keys and values of cross-attention, which edits change, and the encoded prompts that they see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from unlearn.core.errors import RecipeError
from unlearn.data.base import Split
from unlearn.data.concept import Concept, mentions, named, replaced, spoken_of
from unlearn.models.capabilities import Denoises
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.objectives.edits.ridge_regression import Kept, Rows

Tokens = Literal["last_subject", "subject_to_padding", "all"]
"""Which tokens of a prompt make rows: the last one of the subject; that one and all behind it; every one."""


@dataclass(frozen=True)
class Asked:
    """A prompt whose subject must be drawn as another prompt's.

    Args:
        prompt: that names the concept.
        subject: where the concept's words end in it, in characters.
        guide: the prompt that takes its place; the empty one says nothing.
        guide_subject: where the anchor's words end in the guide.
    """

    prompt: str
    subject: int
    guide: str = ""
    guide_subject: int = 0

    def guided(self, before: str, anchor: str, behind: str) -> Asked:
        """Return the same prompt with a guide that has the anchor's words between these two parts."""
        return replace(self, guide=f"{before}{anchor}{behind}", guide_subject=len(before) + len(anchor))


def text_to_image(model: Denoises, part: str) -> Diffusion:
    """Return the model, which has cross-attention to prompts. Raises RecipeError where it has none."""
    if not isinstance(model, Diffusion) or model.text is None:
        what = "is conditioned on classes" if isinstance(model, Diffusion) else f"is a {type(model).__name__}"
        raise RecipeError(
            f"{part} edits the keys and values of cross-attention, and the model {what}, so it has none. Type a method "
            "that trains any weights (forget=esd edit=null, say), or a model that takes prompts (model=text_unet)."
        )
    return model


def keys_and_values(model: Diffusion, part: str) -> dict[str, nn.Linear]:
    """Return the linear maps to keys and values of every cross-attention, by name.

    A map under an adapter is returned without it; ``effective`` gives what the two do together.

    Raises:
        RecipeError: none takes what the text encoder gives.
    """
    found = {
        f"{place}.{name}": _base(getattr(module, name))
        for place, module in model.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
        for name in ("to_k", "to_v")
    }
    width = _encoded(model, [""]).shape[-1]
    fitting = {name: layer for name, layer in found.items() if layer.in_features == width}
    if not fitting:
        raise RecipeError(
            f"{part} edits the keys and values of cross-attention, and none of the model's {len(found)} takes the "
            f"{width} values that the text encoder gives. Type a method that trains any weights (forget=esd edit=null)."
        )
    return fitting


def effective(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what the named maps do, with adapters where there are some: (m, n) float64 each."""
    found = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        weight = _base(layer).weight.detach().to(torch.float64, copy=True)
        if hasattr(layer, "get_delta_weight") and not layer.merged and not layer.disable_adapters:
            for adapter in layer.active_adapters:
                weight = weight + layer.get_delta_weight(adapter).detach().double()
        found[name] = weight
    return found


def asked(concepts: Sequence[Concept], captions: Sequence[str], labels: Iterable[str] = ()) -> list[Asked]:
    """Return the prompts that ask for concepts: one per template, and the captions that name one.

    A name within a longer one, of concepts or of ``labels`` that stay, is not named.
    """
    found, names = [], spoken_of(concepts).union(labels)
    for concept in concepts:
        anchor = concept.anchor
        for template in concept.templates:
            before, behind = template.split("{}")
            entry = Asked(f"{before}{concept.name}{behind}", len(before) + len(concept.name))
            found.append(entry if anchor is None else entry.guided(before, anchor, behind))
        for caption in captions:
            if said := [one for one in mentions(caption, names) if one.name == concept.name]:
                subject = said[-1]  # the last of its names
                before, behind = caption[: subject.start], caption[subject.end :]
                entry = Asked(caption, subject.end)
                guided = replaced(before, {concept.name: anchor or ""}, names)
                found.append(entry if anchor is None else entry.guided(guided, anchor, behind))
    return list(dict.fromkeys(found))


def kept_prompts(concepts: Sequence[Concept], captions: Sequence[str], labels: Iterable[str] = ()) -> list[str]:
    """Return the prompts that stay: the empty one, the concepts' retain lists, and captions that name no concept."""
    words = [template.replace("{}", word) for c in concepts for word in c.retain for template in c.templates]
    others = [caption for caption in captions if not named(caption, concepts, labels)]
    return list(dict.fromkeys(["", *words, *others]))


def check_prompts_to_keep(split: Split, concepts: Sequence[Concept], labels: Iterable[str] = ()) -> None:
    """Refuse a prompt that was typed to be kept and says the name of a concept; captions of images may."""
    for prompt in captions_of(split, len(split)) if split.dataset.prompts_only else ():
        if said := named(prompt, concepts, labels):
            raise RecipeError(
                f"data: the prompt {prompt!r} is to be kept, and says {said[0]!r}, which is to be forgotten. Take it "
                "out of what is kept; or, where it means something else by a longer name, as 'hot dog' for 'dog', add "
                f"that name to retain: [LONGER NAME] of the concept {said[0]!r} in data.concepts."
            )


def captions_of(split: Split, most: int) -> list[str]:
    """Return the different captions of a split, sorted; ``most`` of them, evenly spaced, where there are more."""
    captions = getattr(split.dataset, "captions", split.dataset.labels)
    found = sorted({captions[index] for index in split.ids.tolist()})
    return found if len(found) <= most else [found[index * len(found) // most] for index in range(most)]


def labels_of(split: Split, concepts: Sequence[Concept]) -> set[str]:
    """Return the labels and attributes of a split's items that hold the name of a concept."""
    labels, attributes = split.dataset.labels, split.dataset.attributes
    found = {name for index in split.ids.tolist() for name in (labels[index], *attributes[index])}
    return {name for name in found if any(concept.name in name for concept in concepts)}


@torch.no_grad()
def rows_of(model: Diffusion, wanted: Sequence[Asked], tokens: Tokens, weight: float) -> Rows:
    """Return the rows of prompts, each of the same weight.

    Token k behind the subject of a prompt is treated as token k behind the subject of its guide, as far as both
    go; the first token stands for the subject of the empty prompt, as in the code of UCE. Under ``all``, token k is
    treated as token k.
    """
    states = _encoded(model, [entry.prompt for entry in wanted])
    guides = _encoded(model, [entry.guide for entry in wanted])
    places = _last_tokens(model, [entry.prompt[: entry.subject] for entry in wanted])
    others = _last_tokens(model, [entry.guide[: entry.guide_subject] for entry in wanted])
    length, inputs, aims, prompts = states.shape[1], [], [], []
    for number, (place, other) in enumerate(zip(places, others, strict=True)):
        if max(place, other) >= length - 1:
            raise RecipeError(
                f"The concept of the prompt {wanted[number].prompt!r} lies behind the {length} tokens that the model "
                "reads. Type a shorter one."
            )
        first, second, count = _span(tokens, place, other, length)
        inputs.append(states[number, first : first + count])
        aims.append(guides[number, second : second + count])
        prompts += [number] * count
    together = torch.cat(inputs)
    weights = together.new_full((len(together),), weight)
    return Rows(together, torch.cat(aims), weights, torch.tensor(prompts, device=together.device))


@torch.no_grad()
def kept_of(model: Diffusion, prompts: Sequence[str], tokens: Tokens, weight: float, batch_size: int = 256) -> Kept:
    """Return the sum over the tokens of prompts that must stay; the subject of a prompt is its last word."""
    empty = _encoded(model, [""])[0, -1]
    kept = Kept.nothing(len(empty), empty.device)
    kept.mark = empty
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        states = _encoded(model, part)
        length = states.shape[1]
        for number, place in enumerate(_last_tokens(model, part)):
            first, _, count = _span(tokens, min(place, length - 2), 0, length)
            kept.add(states[number, first : first + count], weight)
    return kept


def _span(tokens: Tokens, place: int, other: int, length: int) -> tuple[int, int, int]:
    """Return the first token of a prompt and of its guide, and how many."""
    if tokens == "last_subject":
        return place, other, 1
    if tokens == "all":
        return 0, 0, length
    return place, other, length - max(place, other)


def _encoded(model: Diffusion, prompts: Sequence[str]) -> Tensor:
    """Return encoded prompts, (B, L, n) float64."""
    states = model.encode(model.prompts(prompts)).states
    assert states is not None
    return states.detach().double()


def _last_tokens(model: Diffusion, beginnings: Sequence[str]) -> list[int]:
    """Return the place of the last token of each beginning of a prompt; 0, the start token, for an empty one."""
    assert model.text is not None
    return [int(length) - 2 for length in model.text.lengths(beginnings)]


def _base(layer: Any) -> nn.Linear:
    """Return a linear map, or the one under an adapter of peft."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer  # type: ignore[no-any-return]
