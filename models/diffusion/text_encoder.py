"""The text side of a diffusion model: tokenizers, text encoders, and the prompts of data in their tokens."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn.core.errors import RecipeError, did_you_mean, shorten
from unlearn.core.shown import no_character
from unlearn.models.conditioning import Condition

log = logging.getLogger(__name__)


class TextSide(nn.Module):
    """One text encoder (Stable Diffusion 1 and 2), or two whose states are concatenated (XL).

    Args:
        encoders: CLIP text models of transformers; with two, the second has a projection.
        tokenizers: one each.
    """

    def __init__(self, encoders: Sequence[nn.Module], tokenizers: Sequence[Any]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.tokenizers = list(tokenizers)

        self._warned: set[str] = set()

    @property
    def length(self) -> int:
        """Number of tokens of every prompt, L: the most that all tokenizers and text encoders take."""
        places = [one.config.max_position_embeddings for one in self.encoders if isinstance(one, PreTrainedModel)]
        return min(map(int, [*places, *(tokenizer.model_max_length for tokenizer in self.tokenizers)]))

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Return (B, E, L) int64 of B prompts; every prompt is padded or, with a warning, cut to ``length``.

        Raises:
            RecipeError: a prompt is no text: it holds half a character or a null byte.
        """
        length = self.length
        if new := [prompt for prompt in self.cut(prompts) if prompt not in self._warned]:
            self._warned.update(new)
            log.warning(
                "%d prompts are longer than the %d tokens that the text encoder reads, and are cut off: %s",
                len(new),
                length,
                shorten(new[0]),
            )
        if not prompts:  # a tokenizer of transformers raises on an empty list
            return torch.empty(0, len(self.tokenizers), length, dtype=torch.int64)
        rows = [
            tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            for tokenizer in self.tokenizers
        ]
        return torch.stack([row["input_ids"] for row in rows], dim=1)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """Return those of some prompts that are longer than ``length``. Raises RecipeError for one that is no text."""
        if not prompts:
            return []
        _refuse_broken(prompts)
        length = self.length
        rows = [tokenizer(list(prompts), verbose=False)["input_ids"] for tokenizer in self.tokenizers]
        return [prompt for prompt, *read in zip(prompts, *rows, strict=True) if max(map(len, read)) > length]

    def refuse_cut(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are longer than ``length``."""
        for prompt in self.cut(prompts):
            raise RecipeError(
                f"The prompt {prompt!r} is longer than the {self.length} tokens that the text encoder reads. "
                "Type a shorter one."
            )

    def refuse_unknown(self, prompts: Sequence[str]) -> None:
        """Refuse words unknown to a tokenizer of whole words: they would all become the same token."""
        _refuse_broken(prompts)
        for tokenizer in self.tokenizers:
            unknown = getattr(tokenizer, "unk_token_id", None)
            if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):  # as CLIP, which spells
                continue
            for word in dict.fromkeys(word for prompt in prompts for word in prompt.split()):
                if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]:
                    hint = did_you_mean(word, tokenizer.get_vocab())
                    raise RecipeError(f"The model's tokenizer does not know the word {word!r}. {hint}")

    def lengths(self, prompts: Sequence[str]) -> Tensor:
        """Return the number of tokens of each prompt, those at both ends counted and padding not, (B,) int64."""
        return torch.tensor([len(self.tokenizers[0](prompt, verbose=False)["input_ids"]) for prompt in prompts])

    def forward(self, tokens: Tensor) -> Condition:
        """Return encoded prompts of tokens (B, E, L)."""
        if len(self.encoders) == 1:
            return Condition(states=self.encoders[0](tokens[:, 0])[0])
        found = [encoder(tokens[:, index], output_hidden_states=True) for index, encoder in enumerate(self.encoders)]
        # SDXL (Podell et al. 2023, section 2.1) takes the last but one layer of both, and the second's pooled vector
        states = torch.cat([output.hidden_states[-2] for output in found], dim=-1)
        return Condition(states=states, pooled=found[-1][0])


def _refuse_broken(prompts: Sequence[str]) -> None:
    for prompt in prompts:
        if broken := no_character(prompt):
            raise RecipeError(f"The prompt {prompt!r} holds {broken}, which is no text. Write whole characters.")
