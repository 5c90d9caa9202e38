"""Folders of adapters of peft, which are merged into their base before anything starts."""

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from unlearn.core.boundary import described, reading
from unlearn.core.errors import RecipeError, some
from unlearn.core.files import content_hash, models_cache
from unlearn.core.float_types import cast_back
from unlearn.core.folders import check_folder, read_mapping
from unlearn.models.base import stored_dtypes
from unlearn.models.language.folder import (
    read_config,
    read_model,
    read_tokenizer,
    restate_types,
    stated_types,
    weight_files,
)
from unlearn.models.lora import merge_adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter's folder."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""A name on the hub: no absolute path, and none that climbs."""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, with or without its base."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path, typed: Collection[str], download: Callable[[str], Path]) -> Path:
    """Return the folder of an adapter's base: in the adapter's own folder, on the hub, or where the user said.

    Args:
        folder: of the adapter.
        typed: paths and hub ids that the user typed. No other path outside of the adapter's folder is followed.
        download: hub id -> the folder in the hub's cache.

    Raises:
        RecipeError: the adapter names another place, or none.
    """
    if (folder / "config.json").is_file():
        return folder
    named = read_mapping(folder / CONFIG).get("base_model_name_or_path")
    if isinstance(named, str) and named:
        inside = Path(folder, named).resolve()
        if inside.is_relative_to(folder.resolve()) and (inside / "config.json").is_file():
            return inside
        for path in typed:
            if Path(expanduser(path)).exists() and Path(expanduser(path)).resolve() == Path(named).resolve():
                return Path(expanduser(path))
        # what lies at that place here is no model of the hub's that happens to have its name
        is_hub_id = HUB_ID.fullmatch(named) and not {".", ".."} & set(named.split("/")) and not Path(named).exists()
        if named in typed or is_hub_id:
            return download(named)
    said = f"names {named!r} as its base, a path outside of the folder" if named else "names no base"
    raise RecipeError(
        f"{folder} is an adapter of peft and {said}. To merge it into its base, type "
        f"model.pretrained={named or 'BASE'} model.adapter={folder}"
    )


def merged(folder: Path, base: Path) -> Path:
    """Return the folder of a base with an adapter merged into it, which is made once and kept in the cache.

    Args:
        folder: of the adapter; its tokenizer is taken, where it has one.
        base: folder of the model that it was trained on. The merged weights are stored in its float types.

    Raises:
        RecipeError: one of them cannot be read, or the adapter does not fit its base or cannot be merged.
    """
    keys = [content_hash(place) for place in dict.fromkeys((folder, base))]
    made = models_cache() / f"merged-{'-'.join(keys)}"
    if (made / "config.json").is_file():
        return made
    check_folder(folder)
    read_config(base)  # by its own name, before it is hidden behind a view
    with _without_adapter(base) as plain:
        model = read_model(plain, torch.float32)
        types = stored_dtypes(model, weight_files(plain))  # while a head is still tied to its embedding
        model = _with_adapter(model, folder)
        cast_back(model, types)
    part = made.with_name(f".{made.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)
    except RuntimeError as error:  # an adapter can repeat layers of its base, which then share their weights
        raise RecipeError(f"{folder} cannot be merged into its base ({described(error)}).") from error
    restate_types(part, stated_types(read_mapping(base / "config.json")))
    has_words = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    read_tokenizer(folder if has_words else base).save_pretrained(part)
    for settings in base.glob("unlearn.json"):
        shutil.copy(settings, part)
    shutil.rmtree(made, ignore_errors=True)
    part.replace(made)
    return made


def _with_adapter(model: Any, folder: Path) -> Any:
    """Return a model with the adapter in a folder merged into it."""
    if not (folder / WEIGHTS).is_file():
        raise RecipeError(f"{folder} holds no {WEIGHTS}. Save the adapter with safetensors.")
    remedy = "Type an adapter of peft that was trained on this base."
    with reading(f"The adapter {folder}", remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of names in transformers
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = get_peft_model(model, config)
        if not hasattr(adapted.base_model, "merge_and_unload"):
            kind = str(getattr(config.peft_type, "value", config.peft_type))
            raise RecipeError(f"{folder} is an adapter of kind {kind}, which cannot be merged. Type a low-rank one.")
        found = load_file(folder / WEIGHTS)
        loaded: Any = set_peft_model_state_dict(adapted, dict(found))  # peft does not type it
        # peft may store the base's embeddings beside an adapter; what it reads of them is taken
        wanted, known = (set(get_peft_model_state_dict(adapted, save_embedding_layers=each)) for each in (False, True))
    if apart := sorted({*(wanted - set(found)), *(set(loaded.unexpected_keys) - known)}):
        raise RecipeError(
            f"The weights in {folder} are not those that its {CONFIG} describes: {some(apart)}. Save the adapter again."
        )
    if bad := [name for name, value in found.items() if not bool(value.isfinite().all())]:
        raise RecipeError(f"{folder} holds weights that are not finite, in {some(bad)}. Type another adapter.")
    try:
        merge_adapters(model)
    except Exception as error:
        raise RecipeError(f"{folder} cannot be merged into its base ({described(error)}).") from error
    return model


@contextmanager
def _without_adapter(folder: Path) -> Iterator[Path]:
    """Give a view of a folder that hides an adapter in it, which transformers would put on unasked."""
    if not is_adapter(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        for path in folder.resolve().iterdir():
            if not path.name.startswith("adapter_"):
                Path(place, path.name).symlink_to(path)
        yield Path(place)
