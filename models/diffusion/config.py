"""Diffusion models: what shapes them before training, and where trained ones come from."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.validation import at_least
from unlearn.data.base import Dataset
from unlearn.data.coloured_digits import COLOURS, DIGIT_WORDS
from unlearn.data.conditioned import Classes, Conditioned, Prompts
from unlearn.models.base import MetaModel, ModelConfig, Wrapper
from unlearn.models.diffusion.hub import pipeline_folder
from unlearn.models.diffusion.memory import meta_model
from unlearn.models.diffusion.settings import LEAST_STEPS, DiffusionSettings, check_steps
from unlearn.models.diffusion.text_encoder import TextSide
from unlearn.models.diffusion.wrapper import Diffusion

log = logging.getLogger(__name__)


@dataclass
class DiffusionConfig(ModelConfig):
    """What all diffusion models share.

    Args:
        steps: DDIM steps per sample, from 2 to the model's timesteps; null takes the stored value, or 20.
        guidance: classifier-free guidance of samples, 1 for none; null takes the stored value, or 2.
    """

    steps: int | None = None
    guidance: float | None = None

    wrapper: ClassVar[type[Wrapper]] = Diffusion
    built_from: ClassVar[tuple[str, ...]] = ("shape", "levels")
    not_in_training: ClassVar[tuple[str, ...]] = (*ModelConfig.not_in_training, "steps", "guidance")

    def __post_init__(self) -> None:
        at_least(self, steps=LEAST_STEPS, guidance=0)

    @override
    def fastest(self) -> Self:
        return replace(self, steps=LEAST_STEPS)

    def load(self, folder: Path) -> Diffusion:
        """Read a model with these settings laid over the folder's own. Raises RecipeError where they do not fit."""
        model = Diffusion.from_pretrained(folder)
        if self.steps is not None:
            check_steps(self.steps, model.timesteps, "model.steps")
            model.settings.steps = self.steps
        if self.guidance is not None:
            model.settings.guidance = self.guidance
        return model

    @override
    def fetch(self, path: str, weights: bool = True) -> Path:
        folder = Path(expanduser(path))
        return folder if folder.is_dir() else pipeline_folder(path, weights)

    def empty(self, path: str) -> Diffusion:
        """Return the model of a folder or hub id on the meta device; no weights are read."""
        return Diffusion.from_pretrained(self.fetch(path, weights=False), weights=False)

    @override
    def meta_model(self, precision: str) -> MetaModel | None:
        return None if self.pretrained is None else meta_model(self.empty(self.pretrained), precision)

    @override
    def read(self, dataset: Dataset) -> Dataset:
        if self.pretrained is not None:
            try:
                return self.empty(self.pretrained).read(dataset)
            except RecipeError as error:
                raise RecipeError(f"model.pretrained: {error}") from error
        return Conditioned(dataset, self.conditioner(dataset))

    def conditioner(self, dataset: Dataset) -> Classes | Prompts:
        """Return what turns the labels or captions of the data into conditions of a new model."""
        return Classes(tuple(sorted({label for label in dataset.labels if label})))

    def settings(self, info: dict[str, Any]) -> DiffusionSettings:
        """Return the settings of a new model for data described by ``info``."""
        return DiffusionSettings(
            shape=info["shape"],
            levels=info["levels"],
            classes=info.get("classes"),
            steps=self.steps or 20,
            guidance=2.0 if self.guidance is None else self.guidance,
        )


@dataclass
class NewDiffusionConfig(DiffusionConfig):
    """What models built from scratch share.

    Args:
        channels: width of each level; every level but the last halves the sides.
        layers: residual blocks per level, >= 1.
        head_dim: channels per attention head.
        timesteps: T.
        prediction: what the network predicts: the noise, the clean image or the velocity.
    """

    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    head_dim: int = 16
    timesteps: int = 1000
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps > self.timesteps:
            raise ValueError(f"steps is {self.steps}; it must be <= timesteps={self.timesteps}")

    def scheduler(self) -> DDPMScheduler:
        """Return the noise schedule: linear, as in Ho et al., DDPM, 2020, section 4."""
        return DDPMScheduler(num_train_timesteps=self.timesteps, prediction_type=self.prediction, clip_sample=True)

    def build(self, info: dict[str, Any], randomness: Randomness) -> Diffusion:
        """Build the untrained model for images of ``info["shape"]`` and ``info["levels"]``."""
        if "shape" not in info:
            raise RecipeError(
                "A new diffusion model is trained on images; the data has prompts alone. Give images, "
                "or a trained one: model.pretrained=FOLDER."
            )
        with randomness.child("weights").seeding():
            return self.network(info)

    def network(self, info: dict[str, Any]) -> Diffusion:
        """Return the model with fresh weights from the global generator."""
        raise NotImplementedError

    def _sizes(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that all U-Nets of diffusers have in common, for images of ``info["shape"]``."""
        channels, side = self._sides(info)
        return {
            "sample_size": side,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "attention_head_dim": self.head_dim,
            "norm_num_groups": 8,
        }

    def _sides(self, info: dict[str, Any]) -> tuple[int, int]:
        channels, height, width = info["shape"]
        if height != width or height % 2 ** (len(self.channels) - 1):
            raise RecipeError(
                f"The data has images of {height} x {width} pixels; model.channels={list(self.channels)} asks for "
                f"square ones whose side {2 ** (len(self.channels) - 1)} divides. Type data.size or model.channels."
            )
        return channels, height


@dataclass
class UNet(NewDiffusionConfig):
    """A U-Net that is conditioned on a class (Ho et al. 2020, with attention at the lowest level)."""

    @override
    def network(self, info: dict[str, Any]) -> Diffusion:
        plain = len(self.channels) - 1
        unet = UNet2DModel(
            **self._sizes(info),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            num_class_embeds=len(info["classes"]) + 1,  # the last stands for no class
        )
        return Diffusion(unet, self.scheduler(), self.settings(info))


@dataclass
class TextUNet(NewDiffusionConfig):
    """A U-Net with cross-attention at all levels but the first, and a small CLIP text encoder trained with it.

    Args:
        words: that the tokenizer knows; null takes those of the data's captions, sorted.
        text_width: size of the encoded words; 4 heads divide it.
        text_layers: layers of the text encoder, >= 1.
        length: tokens per prompt, with those that begin and end it.
    """

    words: tuple[str, ...] | None = ("a", *COLOURS, *DIGIT_WORDS)
    text_width: int = 32
    text_layers: int = 2
    length: int = 8

    @override
    def conditioner(self, dataset: Dataset) -> Prompts:
        captions: Sequence[str] = getattr(dataset, "captions", dataset.labels)
        taken = () if self.words is not None else tuple(sorted({word for text in captions for word in text.split()}))
        fingerprint = hashlib.sha256(repr((self.words or taken, self.length)).encode()).hexdigest()[:16]
        side = TextSide([], [self.tokenizer(taken)])
        return Prompts(side.tokens, fingerprint, words=taken, check=side.refuse_unknown, cut=side.cut)

    def tokenizer(self, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
        """Return a tokenizer of whole words, its own or those of the data; the end token pads, as in CLIP."""
        known = ("<start>", "<end>", "<unknown>", *(self.words or words))
        vocabulary = {word: index for index, word in enumerate(known)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.post_processor = TemplateProcessing(
            single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=self.length,
            bos_token="<start>",
            eos_token="<end>",
            unk_token="<unknown>",
            pad_token="<end>",
        )

    @override
    def network(self, info: dict[str, Any]) -> Diffusion:
        tokenizer = self.tokenizer(info.get("words", ()))
        plain = min(len(self.channels) - 1, 1)  # without attention: the first level, unless it is the only one
        attending = len(self.channels) - plain
        unet = UNet2DConditionModel(
            **self._sizes(info),
            down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * attending,
            up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",) * plain,
            mid_block_type="UNetMidBlock2DCrossAttn",
            cross_attention_dim=self.text_width,
        )
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=self.text_width,
                intermediate_size=4 * self.text_width,
                num_hidden_layers=self.text_layers,
                num_attention_heads=4,
                max_position_embeddings=self.length,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
        return Diffusion(unet, self.scheduler(), self.settings(info), TextSide([encoder], [tokenizer]))


@dataclass
class DiT(NewDiffusionConfig):
    """A diffusion transformer that is conditioned on a class (Peebles and Xie 2023), on pixels.

    Args:
        width: size of the hidden states; ``head_dim`` divides it.
        depth: number of blocks.
        patch: side of a patch in pixels.
    """

    width: int = 96
    depth: int = 4
    patch: int = 2
    channels: tuple[int, ...] = (1,)

    @override
    def network(self, info: dict[str, Any]) -> Diffusion:
        channels, side = self._sides(info)
        transformer = DiTTransformer2DModel(
            num_attention_heads=self.width // self.head_dim,
            attention_head_dim=self.head_dim,
            in_channels=channels,
            out_channels=channels,
            num_layers=self.depth,
            sample_size=side,
            patch_size=self.patch,
            num_embeds_ada_norm=len(info["classes"]),
        )
        return Diffusion(transformer, self.scheduler(), self.settings(info))


@dataclass
class StableDiffusion(DiffusionConfig):
    """A trained pipeline of diffusers: Stable Diffusion 1, 2 or XL, or DiT; ``pretrained`` is a folder or hub id."""

    @override
    def conditioner(self, dataset: Dataset) -> Prompts:
        raise RecipeError("model=stable_diffusion needs model.pretrained: a folder or hub id of a pipeline.")

    @override
    def build(self, info: dict[str, Any], randomness: Randomness) -> Diffusion:
        if self.pretrained is not None:
            return self.load(self.fetch(self.pretrained))
        raise RecipeError("model=stable_diffusion needs model.pretrained: a folder or hub id of a pipeline.")
