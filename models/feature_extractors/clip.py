"""Joint embeddings of images and texts, by path: a CLIP of transformers, or a TorchScript file."""

from collections.abc import Sequence
from functools import cache
from os.path import expanduser
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError, some
from unlearn.core.folders import check_folder, read_mapping
from unlearn.models.base import refuse_not_finite
from unlearn.models.feature_extractors.base import in_colour
from unlearn.models.feature_extractors.torchscript import metric_name, scripted

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the images that CLIP was trained on, where the folder does not say otherwise (Radford et al. 2021)."""


class TextImage(Protocol):
    """Embeds images and texts in one space."""

    name: str

    def images(self, images: Tensor) -> Tensor:
        """Return the embeddings, (B, D), of images (B, C, H, W) in [-1, 1], with gradient."""

    def texts(self, words: Sequence[str]) -> Tensor:
        """Return the embeddings, (n, D), of texts, without gradient."""


def text_image_net(path: str) -> TextImage:
    """Return the scorer at a path: the folder of a CLIP model of transformers, or a TorchScript file.

    A TorchScript file has the methods ``embed_images(images)``, of images (B, C, H, W) in [-1, 1] to (B, D), and
    ``embed_texts(words)``, of a list of text to (n, D).

    Raises:
        RecipeError: there is no such file or folder, or it is no such scorer.
    """
    place = Path(expanduser(path))
    if (place / "config.json").is_file():
        return _clip(place)
    if place.is_file():
        return ScriptedTextImage(place)
    raise RecipeError(f"There is no scorer at {path}. Type the folder of a CLIP model, or a TorchScript file.")


class ScriptedTextImage(TextImage):
    """A scorer in a TorchScript file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.name = metric_name(path)
        self.network: Any = scripted(str(path), "scorer")[1]
        if lost := [name for name in ("embed_images", "embed_texts") if not hasattr(self.network, name)]:
            raise RecipeError(f"{path} has no method {lost[0]}; it needs embed_images and embed_texts.")

    @override
    def images(self, images: Tensor) -> Tensor:
        found: Tensor = self.network.to(images.device).embed_images(images.float())
        return found

    @override
    @torch.no_grad()
    def texts(self, words: Sequence[str]) -> Tensor:
        found: Tensor = self.network.embed_texts(list(words))
        return found


class Clip(TextImage):
    """A CLIP model of transformers with its tokenizer.

    Args:
        folder: of both.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.name = folder.name
        check_folder(folder)
        with reading(folder, "Type a folder with a CLIP model of transformers and its tokenizer."):
            read: Any = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if missing := sorted(read[1]["missing_keys"]):
            raise RecipeError(f"{folder} lacks weights, which would be random: {some(missing)}. Copy the folder again.")
        refuse_not_finite(read[0], folder)
        self.model: Any = read[0].eval().requires_grad_(False)
        about = folder / "preprocessor_config.json"
        given = read_mapping(about) if about.is_file() else {}
        self.mean = torch.tensor(given.get("image_mean", MEAN))[:, None, None]
        self.std = torch.tensor(given.get("image_std", STD))[:, None, None]

    def pixels(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] as the model's input: three channels, its size, normalised."""
        side = self.model.config.vision_config.image_size
        resized = F.interpolate(in_colour(images), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (resized - self.mean.to(images.device)) / self.std.to(images.device)

    @property
    def length(self) -> int:
        """Tokens of a text that the model reads, those of its beginning and end included."""
        return int(self.model.config.text_config.max_position_embeddings)

    def tokens(self, words: Sequence[str]) -> Any:
        """Return texts as the model's input, on its device; those of ``cut`` lose their end."""
        given = self.tokenizer(list(words), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return given.to(self.model.device)

    def cut(self, words: Sequence[str]) -> list[str]:
        """Return the texts that are longer than the model reads."""
        whole = self.tokenizer(list(words), verbose=False)["input_ids"] if words else []
        return [text for text, tokens in zip(words, whole, strict=True) if len(tokens) > self.length]

    @override
    def images(self, images: Tensor) -> Tensor:
        pixels = self.pixels((images.float() + 1) / 2)
        vision = self.model.to(images.device).vision_model(pixel_values=pixels)
        found: Tensor = self.model.visual_projection(vision.pooler_output)
        return found

    @override
    @torch.no_grad()
    def texts(self, words: Sequence[str]) -> Tensor:
        if long := self.cut(words):
            raise RecipeError(f"{self.name} reads {self.length} tokens, and {long[0]!r} is longer. Type fewer words.")
        text = self.model.text_model(**self.tokens(words))
        found: Tensor = self.model.text_projection(text.pooler_output)
        return found


_clip = cache(Clip)
