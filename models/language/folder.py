"""Reads a folder of transformers that anybody may have made: all of its weights, and none of its code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError, some
from unlearn.core.folders import check_folder, read_mapping
from unlearn.models.base import refuse_not_finite, refuse_other_kinds

REMEDY = (
    "Type a folder with config.json, model.safetensors and tokenizer.json whose architecture transformers itself has; "
    "code in a folder is never run (trust_remote_code=False)."
)
"""Ends the message on a folder that cannot be read."""


def read_config(folder: Path) -> Any:
    """Return the configuration of a model's folder, which is looked at first.

    Raises:
        RecipeError: the folder holds no model of transformers, one that is quantised or needs code of its own, or a
            file that names another outside of it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise RecipeError(f"{folder} holds no config.json, so no model of transformers. {REMEDY}")
    check_folder(folder)
    stated = read_mapping(path)
    for part in (stated, *(value for value in stated.values() if isinstance(value, dict))):
        if part.get("quantization_config") or part.get("compression_config"):
            how = part.get("quantization_config") or part.get("compression_config")
            method = how.get("quant_method") if isinstance(how, dict) else None
            raise RecipeError(
                f"{folder} is quantised ({method or 'by a method that it does not name'}), so its weights cannot be "
                "trained. Type the folder or hub id of the model in bfloat16 or float32."
            )
    if "auto_map" in stated and stated.get("model_type") not in CONFIG_MAPPING:
        raise RecipeError(
            f"{folder} needs code that it brings along ({str(stated['auto_map'])[:200]}), and code in a folder is "
            "never run (trust_remote_code=False). Type a model whose architecture transformers itself has."
        )
    with reading(folder, REMEDY):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the causal model in a folder.

    Args:
        folder: of transformers, with all weights in it.
        dtype: of the weights in memory.

    Raises:
        RecipeError: it cannot be read, a weight is missing, left over or not finite (see also ``read_config``).
    """
    config = read_config(folder)
    with reading(folder, REMEDY):
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    model: PreTrainedModel = read[0]
    about: dict[str, set[str]] = read[1]
    if missing := sorted(about["missing_keys"]):
        raise RecipeError(
            f"{folder} lacks weights of its {type(model).__name__}, which would be random: {some(missing)}. "
            "Copy the folder again, or save the whole model."
        )
    if extra := sorted(about["unexpected_keys"]):
        raise RecipeError(
            f"{folder} holds weights that its {type(model).__name__} has no place for, and that would be lost: "
            f"{some(extra)}. Type the folder of a model that is read whole, or mend its config.json."
        )
    refuse_other_kinds(model, weight_files(folder))
    refuse_not_finite(model, folder)
    stated = model.generation_config.eos_token_id if model.generation_config else None
    if not all(isinstance(one, int) for one in (stated if isinstance(stated, list) else [stated or 0])):
        raise RecipeError(
            f"{folder / 'generation_config.json'}: eos_token_id is {stated!r}; it must be a whole number, or several. "
            "Mend it, or delete the file."
        )
    return model


def stated_types(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the float types that a configuration states, of its parts too, nested as they are."""
    own = config.get("dtype", config.get("torch_dtype"))
    parts = {name: stated_types(part) for name, part in config.items() if isinstance(part, dict)}
    return {**({"dtype": own} if isinstance(own, str) else {}), **{name: part for name, part in parts.items() if part}}


def restate_types(folder: Path, types: Mapping[str, Any]) -> None:
    """Let the ``config.json`` of a folder that was just written state float types again, by which others read it.

    transformers writes the type of one of the weights, and those in memory of a model's parts.
    """
    path = folder / "config.json"
    config = read_mapping(path)
    _put(config, types)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _put(config: dict[str, Any], types: Mapping[str, Any]) -> None:
    for name, value in types.items():
        if isinstance(value, dict):
            if isinstance(config.get(name), dict):
                _put(config[name], value)
        else:
            config[name] = value


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that ``read_model`` reads, but for others of the same weights beside them."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer in a folder, which is looked at first. Raises RecipeError where there is none."""
    if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
        raise RecipeError(f"{folder} is a run directory. Type {folder / 'model'}")
    if folder.is_dir():
        check_folder(folder)
    with reading(f"The tokenizer of {folder}", REMEDY):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise RecipeError(
            f"The tokenizer of {folder} is a {type(tokenizer).__name__}, without a tokenizer.json. Type a folder "
            "with a fast one, as AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) writes where it can."
        )
    return tokenizer
