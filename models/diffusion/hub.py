"""Pipelines of diffusers, and their folders from the Hugging Face hub: only the files that are read are downloaded."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from unlearn.core.errors import RecipeError


@dataclass(frozen=True)
class WeightFiles:
    """The set of weights that a component is read from.

    Args:
        variant: in the names of the files, empty for none.
        files: by their place in the pipeline's folder.
    """

    variant: str
    files: list[str]


TEXT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
IMAGES = ("vae", "feature_extractor", "image_encoder", "safety_checker")
PARTS = frozenset(("unet", "transformer", "scheduler", *TEXT, *IMAGES))
"""Folders of the components that the pipelines may have."""

ABOUT = frozenset({"model_index.json", "unlearn.json", "guard.json"})
"""Files next to these folders."""

HALF = "fp16"
"""The variant in half precision, as file names have it."""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<early>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<late>\w+))?"
    r"\.(?P<kind>safetensors|bin)(?:\.index(?:\.(?P<listed>\w+))?\.json)?"
)


def pipeline_folder(name: str, weights: bool = True) -> Path:
    """Return the folder of a pipeline in the hub's local cache; missing files are downloaded.

    Args:
        name: hub id, such as ``stabilityai/sdxl-turbo``.
        weights: whether to include weights; otherwise only configuration and tokenizer files.

    Raises:
        RecipeError: the hub cannot be reached and nothing is cached, or the repository holds no pipeline.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = list_repo_files(name)
        if not ABOUT & set(names):
            raise RecipeError(f"{name!r} on the hub holds no pipeline of diffusers: model_index.json is not there.")
        return Path(snapshot_download(name, allow_patterns=[escape(file) for file in chosen(names, weights)]))
    except RecipeError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        with suppress(Exception):  # without a connection, what is cached serves
            return Path(snapshot_download(name, local_files_only=True))
        reason = (str(error).splitlines() or [""])[0]
        raise RecipeError(
            f"{name!r} is no folder here, and the hub did not give it ({type(error).__name__}: {reason}). Type an "
            "existing folder with model_index.json (of a pipeline of diffusers, or model/ of a run), or a hub id that "
            "you have access to while the hub can be reached."
        ) from error


def chosen(names: Sequence[str], weights: bool) -> list[str]:
    """Return the files of a pipeline that are read.

    Each part is read from one set of weights: full precision before half, then safetensors before other formats. As
    soon as one part exists in half precision only, half precision is preferred for all parts.
    """
    wanted = [file for file in names if file in ABOUT]
    for part in sorted({file.partition("/")[0] for file in names} & PARTS):
        own = [file for file in names if file.startswith(f"{part}/") and file.count("/") == 1]
        wanted += [file for file in own if file.endswith((".json", ".txt", ".model")) and not is_weights(file)]
        if weights and (best := best_set(names, part)):
            wanted += best.files
    return wanted


def best_set(names: Sequence[str], part: str) -> WeightFiles | None:
    """Return the weights that a component is read from, as ``chosen`` says; None where it has none."""
    found = _sets(names).get(part)
    if not found:
        return None
    half = variant(names) is not None
    best = min(found, key=lambda key: ((key[0] == HALF) != half, key[0] != "", key[1] != "safetensors", key))
    return WeightFiles(best[0], found[best])


def is_weights(file: str) -> bool:
    """Return whether a file of a component holds weights, or lists files that do."""
    return _WEIGHTS.fullmatch(file.rpartition("/")[2]) is not None


def variant(names: Sequence[str]) -> str | None:
    """Return the variant for diffusers to read: half precision if a part exists in no other, otherwise None."""
    return HALF if any(all(kind == HALF for kind, _ in found) for found in _sets(names).values()) else None


def _sets(names: Sequence[str]) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Return the weights of each part: (variant, kind of file) -> files."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    for file in names:
        part, _, own = file.partition("/")
        match = _WEIGHTS.fullmatch(own)
        if part in PARTS and match:
            key = (match["early"] or match["late"] or match["listed"] or "", match["kind"])
            found.setdefault(part, {}).setdefault(key, []).append(file)
    return found
