"""A language model on the meta device, and the memory of its backward pass."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from unlearn.core.boundary import reading
from unlearn.data.base import Split
from unlearn.models.base import MetaModel, check_stored_shapes
from unlearn.models.language.folder import REMEDY, read_config
from unlearn.models.language.tokenization import TextEncoder
from unlearn.models.language.wrapper import Language

COPIES = 4
"""Single-precision copies of the logits at the answer tokens: logits, target, log-probabilities, gradient."""

WORDS = (
    "of the longest items, tokens x layers x (8 hidden + 2 key/value + 4 feed-forward) numbers, or tokens x layers x "
    f"hidden and one layer of those with checkpointing; {COPIES} x answer tokens x vocabulary for the logits; a cast "
    "copy of the weights in mixed precision"
)


def meta_model(folder: Path, encoder: TextEncoder, checkpointing: bool, dtype: str, precision: str) -> MetaModel:
    """Return the model that a folder's config.json describes, on the meta device.

    ``dtype`` is that of the weights (``model.dtype``), ``precision`` that of the training steps. Raises RecipeError
    where the folder describes no causal model.
    """
    config = read_config(folder)
    with reading(f"The configuration of {folder}", REMEDY), torch.device("meta"):
        inner = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32 if dtype == "auto" else getattr(torch, dtype), trust_remote_code=False
        )
    check_stored_shapes(inner, folder)
    model = Language(inner, encoder, checkpointing)
    mixed = precision == "bf16-mixed"
    width = 2 if mixed or dtype == "bfloat16" else 8 if precision == "64-true" else 4
    cast = 2 * inner.num_parameters() if mixed and dtype != "bfloat16" else 0
    output = inner.get_output_embeddings()
    head = 4 * sum(weight.numel() for weight in output.parameters()) if output is not None else 0
    return MetaModel(model, partial(_step_bytes, config.get_text_config(), checkpointing, width, cast), WORDS, head)


def _step_bytes(config: Any, checkpointing: bool, width: int, cast: int, split: Split, items: int) -> int:
    """Return the bytes of a micro-batch of a split's ``items`` longest items, padded to one length."""
    data: Any = split.dataset
    lengths = [tuple(map(len, data.tokens(item))) for item in split.ids.tolist()]
    longest = max((prompt + answer for prompt, answer in lengths), default=0)
    answers = sum(sorted((answer for _, answer in lengths), reverse=True)[:items])
    tokens = min(items, len(lengths)) * longest
    logits: int = COPIES * answers * config.vocab_size
    return width * kept_numbers(config, tokens, checkpointing) + 4 * logits + cast


def kept_numbers(config: Any, tokens: int, checkpointing: bool) -> int:
    """Return how many numbers the layers of a Llama-like model keep for the backward pass of ``tokens`` tokens.

    Without checkpointing a layer keeps its two normalisations and residuals, queries and their rotation, keys, values,
    what attention and its projection give (8 hidden + 2 key/value), and the gate, its activation, the other branch and
    their product (4 feed-forward); attention's square is never held. The last normalisation adds 2 hidden.
    """
    hidden, depth, heads = config.hidden_size, config.num_hidden_layers, getattr(config, "num_attention_heads", None)
    keys: int = hidden * (getattr(config, "num_key_value_heads", None) or heads) // heads if heads else hidden
    forward = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = 8 * hidden + 2 * keys + 4 * forward
    return int(tokens * ((depth * hidden + layer if checkpointing else depth * layer) + 2 * hidden))
