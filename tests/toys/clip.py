"""A CLIP model of random weights that reads the captions of coloured digits."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from unlearn.data.coloured_digits import COLOURS, DIGIT_WORDS


def small_clip(path: Path) -> Path:
    """Write the model and its tokenizer into a folder, and return it."""
    vocabulary = {
        word: number for number, word in enumerate(("<start>", "<end>", "<unknown>", "a", *COLOURS, *DIGIT_WORDS))
    }
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = [("<start>", 0), ("<end>", 1)]
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<end>", eos_token="<end>").save_pretrained(path)
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"image_size": 16, "patch_size": 8, **small}
    torch.manual_seed(1)
    config = CLIPConfig(text_config={**text, **small}, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(path)
    return path
