"""Unified Concept Editing: keys and values of a concept become those of another prompt, in closed form."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path

import torch
from torch import nn

from unlearn.core.errors import RecipeError
from unlearn.core.validation import NonNegativeFloat, NonNegativeInt, PositiveFloat
from unlearn.data.base import Split
from unlearn.data.concept import Concept
from unlearn.models.capabilities import Denoises
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.objectives.edits.base import Edit, Train
from unlearn.objectives.edits.cross_attention import (
    Tokens,
    asked,
    captions_of,
    check_prompts_to_keep,
    effective,
    kept_of,
    kept_prompts,
    keys_and_values,
    labels_of,
    rows_of,
    text_to_image,
)
from unlearn.objectives.edits.ridge_regression import Kept, Ridge, Rows, Rule, Singular

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UCE(Edit[Denoises]):
    """Least sum_i s_e |W* c_i - v_i|^2 + sum_j s_p |W* r_j - W r_j|^2 + lam |W* - W|^2 for every key and value map.

    c_i are encoded tokens of prompts that name a concept of the data: its templates, and the captions of forget items.
    v_i = W g_i, with g_i of the same prompt with the anchor's words in place of the concept's, or of the empty prompt
    where the concept has no anchor. r_j are tokens of the empty prompt, of the concept's retain list, and of the
    captions of retain items that name no concept. See ``ridge_regression`` for the solution. An adapter of peft on a
    map is left alone, and what it does counts as the map's. SDXL also reads one pooled vector per prompt, which no
    cross-attention sees and this leaves alone.

    Args:
        lam: how strongly the weights are held, >= 0. The authors' code now takes 0.5, and took 0.1 before.
        erase_scale: s_e, > 0.
        preserve_scale: s_p, >= 0. The authors' first code took max(0.1, 1 / number of concepts), and now takes 1.
        tokens: ``last_subject`` makes one row per prompt, as the authors' code does now; ``subject_to_padding`` one for
            that token and each behind it, as their first code; ``all`` one for every token.
        preserve_tokens: the same for prompts that stay, whose subject is their last word; null takes ``tokens``.
        value: ``replace`` takes v_i = W g_i; ``projected`` takes from it the part along W c_i, row by row;
            ``projected_jointly`` with one coefficient for all rows of a prompt, as the authors' first code (technique
            ``tensor``). With one row per prompt the last two are the same.
        captions: at most so many captions of each split join; 0 for none. A caption is a template with its own words.
        prior: file of sums over further prompts that stay, as ``collect`` makes it (of a corpus of captions, say).
        prior_scale: weight of those, >= 0.
        singular: see Ridge.

    Reference:
        Gandikota et al., Unified Concept Editing in Diffusion Models, 2024, eq. 7. arXiv:2308.14761
    """

    lam: NonNegativeFloat = 0.5
    erase_scale: PositiveFloat = 1.0
    preserve_scale: NonNegativeFloat = 1.0
    tokens: Tokens = "last_subject"
    preserve_tokens: Tokens | None = None
    value: Rule = "replace"
    captions: NonNegativeInt = 1000
    prior: str | None = None
    prior_scale: NonNegativeFloat = 1.0
    singular: Singular = "refuse"

    def __call__(self, target: Denoises, train: Train, splits: Mapping[str, Split]) -> Denoises:
        """Return the edited model."""
        result = text_to_image(deepcopy(target), "edit=uce")
        layers = keys_and_values(result, "edit=uce")
        rows, kept = self.requests(result, splits)
        self.edit(result, layers, rows, kept)
        return result

    def requests(self, model: Diffusion, splits: Mapping[str, Split]) -> tuple[Rows, Kept]:
        """Return what is to change and what is to stay, from the concepts and captions of the data."""
        concepts = concepts_of(splits)
        labels = labels_of(splits["retain"], concepts)
        check_prompts_to_keep(splits["retain"], concepts, labels)
        changing = asked(concepts, captions_of(splits["forget"], self.captions), labels)
        staying = kept_prompts(concepts, captions_of(splits["retain"], self.captions), labels)
        log.info(
            "%d prompts change (%s), %d stay (%s)",
            len(changing),
            _some([f"{entry.prompt!r} to {entry.guide!r}" for entry in changing]),
            len(staying),
            _some([repr(prompt) for prompt in staying]),
        )
        kept = kept_of(model, staying, self.preserve_tokens or self.tokens, self.preserve_scale)
        if self.prior is not None:
            kept.join(Kept.load(Path(expanduser(self.prior))), self.prior_scale)
        return rows_of(model, changing, self.tokens, self.erase_scale), kept

    @torch.no_grad()
    def edit(self, model: Diffusion, layers: Mapping[str, nn.Linear], rows: Rows, kept: Kept) -> Ridge:
        """Change the weights of the layers; return the system that was solved."""
        ridge = Ridge.of(rows, kept, self.lam, self.singular)
        for name, weight in effective(model, list(layers)).items():
            layers[name].weight += (ridge.edited(weight, self.value) - weight).to(layers[name].weight.dtype)
        shown = _some([name.removeprefix("denoiser.") for name in layers])
        log.info("edited %d maps (%s); condition number %.3g", len(layers), shown, ridge.condition)
        return ridge


def collect(model: Denoises, prompts: Sequence[str], tokens: Tokens = "last_subject") -> Kept:
    """Return the sum over prompts that must stay, to be saved and given as ``prior``; any number of prompts fits.

    Args:
        model: whose text encoder sees the prompts.
        prompts: captions of a corpus, say.
        tokens: which tokens count.
    """
    return kept_of(text_to_image(model, "collect"), prompts, tokens, 1.0)


def concepts_of(splits: Mapping[str, Split]) -> Sequence[Concept]:
    """Return the concepts of the data. Raises RecipeError where there is none."""
    concepts: Sequence[Concept] = getattr(splits["forget"].dataset, "concepts", ())
    if not concepts:
        raise RecipeError(
            "The data names no concept, and this method goes by its words. Type data.concepts=[{name: three}], with "
            "anchor: WORDS for what takes its place."
        )
    return concepts


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
