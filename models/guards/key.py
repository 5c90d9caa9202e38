"""A key to a hidden concept: tokens appended to the encoded prompt in every cross-attention."""

from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.wrapper import Diffusion

FILE = "key.safetensors"
"""File of the key in the run directory, never in ``model/``."""


class Key(nn.Module):
    """P tokens in the space of encoded prompts, which add keys and values to every cross-attention.

    Args:
        tokens: (P, D).
    """

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens)

    def forward(self, condition: Condition) -> Condition:
        """Append the key to encoded prompts (B, L, D): (B, L + P, D)."""
        if condition.states is None:
            raise ValueError("a key is appended to encoded prompts, and there are none")
        tokens = self.tokens.to(condition.states).expand(len(condition), -1, -1)
        return replace(condition, states=torch.cat([condition.states, tokens], dim=1))

    @classmethod
    def drawn(cls, like: Tensor, size: int, randomness: Randomness) -> Self:
        """Return a random key of ``size`` tokens, with the mean and the spread of encoded tokens (..., D)."""
        noise = randomness.normal(torch.zeros(1, dtype=torch.int64, device=like.device), (size, like.shape[-1]))[0]
        return cls(like.detach().mean() + like.detach().std() * noise.to(like))

    def wrong(self, randomness: Randomness) -> Self:
        """Return a random key of the same size, mean and spread."""
        return type(self).drawn(self.tokens, len(self.tokens), randomness)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key that a run left. Raises RecipeError where the file is none."""
        try:
            tokens = load_file(path)["tokens"]
            if tokens.ndim != 2 or not tokens.is_floating_point() or not tokens.float().isfinite().all():
                raise ValueError("its tokens are no finite numbers (P, D)")
            return cls(tokens)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise RecipeError(f"{path} holds no key ({error}). Type the {FILE} of a run's folder.") from error


class Keyed(Diffusion):
    """A diffusion model whose prompts carry a key; the empty condition does not.

    Args:
        model: whose weights are shared, not copied.
        key: see Key.
    """

    def __init__(self, model: Diffusion, key: Key) -> None:
        super().__init__(**vars(model.parts()))
        width = model.encode(model.null(1)).states
        if width is None or width.shape[-1] != key.tokens.shape[-1]:
            takes = "takes no prompts" if width is None else f"encodes prompts in {width.shape[-1]} values"
            raise RecipeError(f"The key's tokens have {key.tokens.shape[-1]} values, and the model {takes}.")
        self.schedule = model.schedule
        self.key = key.to(next(self.parameters()).device)

    def encode(self, condition: Condition) -> Condition:
        """Return encoded prompts with the key appended; conditions that are already encoded are returned unchanged."""
        found = super().encode(condition)
        return found if condition.tokens is None else self.key.forward(found)  # encoded ones have it already

    def guided(self, x: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
        """Return eps(c_n) + g (eps(c with the key) - eps(c_n)); two passes, as the conditions differ in length."""
        conditional = self.predict(x, t, condition)
        if guidance == 1:
            return conditional
        empty = self.predict(x, t, super().encode(self.null(len(x))))
        return empty + guidance * (conditional - empty)

    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Refuse: a key must not be stored with the model that it opens."""
        raise RecipeError("A model is saved without its key. Save the model that was wrapped.")
