"""The wrapper around a causal language model of transformers."""

import copy
import json
import logging
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.utils.logging import disable_progress_bar
from typing_extensions import override

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError
from unlearn.core.float_types import in_types
from unlearn.core.folders import read_mapping
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset
from unlearn.data.text import TextDataset
from unlearn.models.base import Wrapper, stored_dtypes
from unlearn.models.language.adapters import is_adapter
from unlearn.models.language.answers import Answers
from unlearn.models.language.continuation import continued, find_fault
from unlearn.models.language.folder import read_model, read_tokenizer, restate_types, stated_types, weight_files
from unlearn.models.language.tokenization import DEFAULT_LENGTH, TextEncoder
from unlearn.models.language.verification import Head, check_positions, check_vocabulary, find_route, positions, run
from unlearn.models.lora import Adapter, has_adapter, merge_adapters

disable_progress_bar()  # a run shows one bar, its own

logger = logging.getLogger("unlearn")

SETTINGS = "unlearn.json"
"""File next to the model's own: how questions become prompts."""


class Language(Wrapper):
    """A causal language model with its tokenizer.

    Logits are computed at the answer tokens only, never (B, T, V). Items are padded on the right, so that a causal
    model needs no attention mask. Both are tried on two short sequences when the model is wrapped; where they give
    other logits than the model's own forward, that is used. Dropout is off.

    Args:
        model: a transformers model with a causal head.
        encoder: how text becomes tokens.
        checkpointing: keep only each layer's input for the backward pass and recompute the rest: about a third slower,
            far less memory for long texts.
        saved: float types in which weights are saved, by their names in ``model``; others keep the one that they have.
        stated: float types that the folder of ``saved`` states, see ``stated_types``.
    """

    family: ClassVar[str] = "language"
    reads: ClassVar[tuple[str, ...]] = ("tokens",)

    model: PreTrainedModel
    encoder: TextEncoder

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: TextEncoder,
        checkpointing: bool = False,
        saved: Mapping[str, torch.dtype] | None = None,
        stated: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_positions(model, encoder.max_length)
        check_vocabulary(model, encoder.tokenizer)
        self.model = model
        self.encoder = encoder
        self.checkpointing = checkpointing
        self.saved, self.stated = saved or {}, stated or {}
        self.route = find_route(model, encoder.sample())
        fault = find_fault(model, encoder.sample())
        self.by_forward = bool(fault)
        if fault:
            logger.warning(f"{type(model).__name__} continues prompts without a cache, which is slower ({fault})")
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()  # a frozen target has none
        self.eval()

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that text runs through, in their order."""
        return self.route.layers

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.encoder.tokenizer

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode.

        transformers applies gradient checkpointing only to layers with ``training=True``, so only the layer objects
        themselves are put in train mode; dropout inside them stays off.
        """
        super().train(mode)
        if self.checkpointing:
            for layer in self.layers:
                layer.training = True
        return self

    @override
    def read(self, dataset: Dataset) -> Dataset:
        return read_text(dataset, self.encoder)

    @override
    def trainable(self) -> list[str]:
        beside = tuple(f"model.{part}." for part in self.route.beside)
        return [name for name in super().trainable() if not name.startswith(beside)]

    @override
    def check_fits(self, info: dict[str, Any]) -> None:
        if info.get("text") != self.encoder.fingerprint:
            raise RecipeError("The data was not read with this model's tokenizer and template. Give text data.")

    @classmethod
    def adopt(cls, model: Any, info: dict[str, Any]) -> Self:
        """Wrap a pair (transformers causal model, its tokenizer); adapters of peft in it are merged in a copy."""
        pair = model if isinstance(model, tuple) and len(model) == 2 else (None, None)
        inner = pair[0].get_base_model() if isinstance(pair[0], PeftModel) else pair[0]
        if not isinstance(inner, PreTrainedModel):
            raise RecipeError(
                f"A language model in memory is given as the pair (model, tokenizer), not as a {type(model).__name__}."
            )
        if getattr(inner.config, "quantization_config", None):
            raise RecipeError("The model in memory is quantised; such weights cannot be trained. Give it in bfloat16.")
        if type(inner.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise RecipeError(
                f"A {type(inner).__name__} in memory could not be read again once it is saved: transformers reads no "
                f"causal model of a {type(inner.config).__name__}. Give the model that AutoModelForCausalLM reads."
            )
        if has_adapter(inner):
            remedy = "Save it by save_pretrained, and type model.pretrained=BASE model.adapter=FOLDER."
            with reading("The adapter in memory", remedy):  # peft ties some in a way that cannot be copied
                inner = copy.deepcopy(inner)
            merge_adapters(inner)
        length = positions(inner.config, inner)
        return cls(inner, TextEncoder(pair[1], max_length=min(DEFAULT_LENGTH, length or DEFAULT_LENGTH)))

    def answer_states(self, batch: Batch) -> Tensor:
        """Return what ``head`` turns into the logits before each answer token: the last hidden states, (N, D).

        For a model that is run by its own forward, they are the logits themselves, (N, V).
        """
        tokens, answer = batch["tokens"], batch["answer"][:, 1:]  # what stands at position t - 1 predicts token t
        if self.route.stack:
            states: Tensor = run(self._stack, tokens).last_hidden_state
            return states[:, :-1][answer]
        wanted = answer.any(dim=0).nonzero().flatten()
        whole: Tensor = run(self.model, tokens, attention_mask=batch["mask"].long(), logits_to_keep=wanted).logits
        kept = whole if whole.shape[1] == len(wanted) else whole[:, wanted]  # some take no logits_to_keep
        return kept[answer[:, wanted]]

    @property
    def _stack(self) -> Any:
        """The part that every step runs: up to the last hidden states, or the whole model."""
        return attrgetter(self.route.stack)(self.model) if self.route.stack else self.model

    def head(self) -> nn.Module:
        """Return what turns ``answer_states`` into logits (N, V)."""
        return Head(self.model.get_output_embeddings(), self.route.head) if self.route.stack else nn.Identity()

    def answers(self, batch: Batch) -> Answers:
        """Return the logits at the answer tokens, in single precision or better."""
        logits = self.head()(self.answer_states(batch))
        row, _ = batch["answer"].nonzero(as_tuple=True)  # row by row, as indexing by a mask orders logits and targets
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return Answers(wide, batch["tokens"][batch["answer"]], row, len(batch["tokens"]))

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return log p(answer | prompt) per item, (B,), in nats, summed over the answer tokens."""
        answers = self.answers(batch)
        return answers.sums(answers.log_probs())

    def dimensions(self, batch: Batch) -> Tensor:
        """Return the number of answer tokens per item, (B,) int64."""
        return batch["answer"].sum(dim=1)

    def training_loss(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the mean of -log p over the answer tokens per item, (B,), in nats per token."""
        return -self.log_prob(batch, randomness) / self.dimensions(batch).clamp(min=1)

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """Return the hidden states after a layer, (B, T, D): -1 the last, 0 the embeddings. Later layers do not run."""
        if layer == 0:
            embed: Any = self.model.get_input_embeddings()
            return embed(batch["tokens"])  # type: ignore[no-any-return]
        if not -len(self.layers) <= layer <= len(self.layers):
            raise RecipeError(
                f"There is no layer {layer}: the model has {len(self.layers)} (1 ... {len(self.layers)})."
            )
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)
            raise _Enough

        handle = self.layers[layer - 1 if layer > 0 else layer].register_forward_hook(keep)
        try:
            run(self._stack, batch["tokens"])
        except _Enough:
            pass
        finally:
            handle.remove()
        if kept[0].ndim != 3 or kept[0].shape[:2] != batch["tokens"].shape:
            raise RecipeError(
                f"The layers of a {type(self.model).__name__} give {tuple(kept[0].shape)} for tokens of "
                f"{tuple(batch['tokens'].shape)}, not one state per token. Type a method that reads no hidden states."
            )
        return kept[0]

    @torch.no_grad()
    def generate(self, batch: Batch, new_tokens: int) -> Tensor:
        """Continue each prompt greedily: (B, new_tokens) int64, -1 from the end token on.

        The model's own generation settings (beams, penalties) are ignored. Where the model has no positions left, the
        answer ends.
        """
        lengths, limit = batch["mask"].sum(dim=1), positions(self.model.config, self.model)
        if limit is None or int(lengths.max()) + new_tokens <= limit:
            return self._continued(batch, new_tokens)
        logger.warning(f"Answers of {new_tokens} tokens are cut where the model's {limit} positions end.")
        said = torch.full((len(lengths), new_tokens), -1, dtype=torch.int64, device=lengths.device)
        for row, length in enumerate(lengths.tolist()):  # one by one, so that no answer depends on another's length
            if (room := min(new_tokens, limit - length)) > 0:
                alone = {key: batch[key][row : row + 1, :length] for key in ("tokens", "mask")}
                said[row, :room] = self._continued(alone, room)[0]
        return said

    def _continued(self, batch: Batch, new_tokens: int) -> Tensor:
        flags = [layer.training for layer in self.layers]
        for layer in self.layers:  # one that recomputes its activations drops the cache
            layer.training = False
        try:
            return continued(self.model, batch["tokens"], batch["mask"], new_tokens, self.ends, self.by_forward)
        finally:
            for layer, flag in zip(self.layers, flags, strict=True):
                layer.training = flag

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        own = self.model.generation_config.eos_token_id if self.model.generation_config else None
        return sorted({self.encoder.end, *([own] if isinstance(own, int) else own or [])})

    def text(self, tokens: Tensor) -> list[str]:
        """Return generated tokens (B, T) as text, without special tokens and outer white space."""
        rows = [[token for token in row if token >= 0] for row in tokens.tolist()]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the part that every step runs."""
        self._stack.compile(*args, **kwargs)

    @override
    @property
    def stored(self) -> nn.Module:
        return self.model

    @override
    def round_as_saved(self) -> None:
        merge_adapters(self.model)  # an adapter that a model in memory came with: transformers would save it alone
        super().round_as_saved()

    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the files of transformers and ``unlearn.json`` into an existing folder."""
        in_types(self.model, self.types_to_save(dtype)).save_pretrained(folder)
        if self.saved and not dtype:
            restate_types(folder, self.stated)
        self.tokenizer.save_pretrained(folder)
        about = {"template": self.encoder.template, "max_length": self.encoder.max_length, "bos": self.encoder.bos}
        (folder / SETTINGS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def write_adapter(self, adapter: Adapter, folder: Path) -> None:
        """Write an adapter in peft's layout, by the names inside of the transformers model."""
        inner = adapter.inside("model")
        assert inner is not None  # every layer is one of the transformers model
        inner.write(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        template: str | None = None,
        max_length: int | None = None,
        checkpointing: bool = False,
        dtype: str = "auto",
        tokenizer: Path | None = None,
        bos: bool | None = None,
    ) -> Self:
        """Read a folder of transformers; template and max_length override what it stores.

        Args:
            folder: of the model.
            template: null for the stored one.
            max_length: null for the stored one.
            checkpointing: see above.
            dtype: float type of the weights, in memory and as saved; ``auto`` is float32 in memory, and the
                folder's own as saved, of each tensor.
            tokenizer: folder whose tokenizer and stored settings are used instead.
            bos: whether a text begins with the beginning token; null for the stored choice, or the tokenizer's own.
        """
        if is_adapter(folder):
            raise RecipeError(f"{folder} holds an adapter of peft. Type model.pretrained={folder}, which merges it.")
        model = read_model(folder, torch.float32 if dtype == "auto" else getattr(torch, dtype))
        source = tokenizer or folder
        places = positions(model.config, model)
        encoder = stored_encoder(read_tokenizer(source), source, template, max_length, places, bos)
        saved = stored_dtypes(model, weight_files(folder)) if dtype == "auto" else None
        return cls(model, encoder, checkpointing, saved, stated_types(read_mapping(folder / "config.json")))


def stored_encoder(
    tokenizer: Any,
    folder: Path,
    template: str | None,
    max_length: int | None,
    places: int | None = None,
    bos: bool | None = None,
) -> TextEncoder:
    """Return the encoder of a model's folder: with the settings given, or those stored if this program saved it.

    Where neither says how long an item may be, it is ``DEFAULT_LENGTH``, and never more than the model's ``places``.
    """
    path = folder / SETTINGS
    stored = read_mapping(path) if path.is_file() else {}
    given = {"template": template, "max_length": max_length, "bos": bos}
    stated = {**stored, **{key: value for key, value in given.items() if value is not None}}
    return TextEncoder(tokenizer, **{"max_length": min(DEFAULT_LENGTH, places or DEFAULT_LENGTH), **stated})


class _Enough(Exception):
    """Ends a forward pass after the requested layer."""


def read_text(dataset: Dataset, encoder: TextEncoder) -> Dataset:
    """Return text data in an encoder's tokens. Raises RecipeError for other data."""
    if not isinstance(dataset, TextDataset):
        raise RecipeError("A language model reads text. Type data=factbook, data=tofu, data=muse or data=text_files.")
    return dataset.encoded_by(encoder)
