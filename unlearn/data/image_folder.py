"""Images of any size in a folder, read when they are needed."""

import csv
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from io import BytesIO
from os.path import expanduser
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from typing_extensions import override

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError
from unlearn.core.files import read_text
from unlearn.core.folders import check_link
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Batch, Dataset, Source
from unlearn.data.concept import Concept
from unlearn.data.image_io import opened, read_picture
from unlearn.data.in_memory import Bits, systematic_test_share

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
YES, NO = frozenset({"1", "true", "yes"}), frozenset({"", "-1", "0", "false", "no"})


@dataclass
class ImageFolder(Source):
    """Images in subfolders; the name of the first subfolder is the label, as text (``no`` and ``012`` included).

    Every image is cropped to its central square and resized. Files are taken in the order of their relative names;
    every fifth image of a label is a test item. Images directly in the folder have no label. A link that leads out of
    the folder is refused.

    Args:
        path: the folder.
        size: height and width in pixels after resizing.
        channels: 3 for colour, 1 for grey.
        bits: grey levels kept, 2**bits of 256: 1 ... 8.
        attributes: a table of further labels, relative to the folder. CSV: a header, the relative file name in the
            first column, then one column per attribute with 1, true, yes or 0, -1, false, no, nothing. JSON: a mapping
            of relative file names to lists of attributes.
        concepts: for diffusion models: what to forget, and what takes its place.
    """

    path: str = "???"
    size: PositiveInt = 32
    channels: int = 3
    bits: Bits = 8
    attributes: str | None = None
    concepts: list[Concept] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; it must be 1 (grey) or 3 (colour)")

    @override
    def load(self) -> Dataset:
        """List and hash the files; pixels are read batch by batch. Raises RecipeError naming what is wrong."""
        root = Path(expanduser(self.path))
        if not root.is_dir():
            raise RecipeError(f"data.path: there is no folder {self.path!r}. Type data.path=FOLDER_OF_IMAGES.")
        found = sorted(root.rglob("*"))
        for path in found:
            if path.is_symlink() and not _is_hidden(path, root) and (path.suffix.lower() in ENDINGS or path.is_dir()):
                check_link(path, root)
        files = {file.relative_to(root).as_posix(): file for file in found if _is_image(file, root)}
        if not files:
            raise RecipeError(f"data.path: {self.path!r} holds no images. Endings read: {', '.join(sorted(ENDINGS))}.")
        files = dict(sorted(files.items()))
        table: dict[str, frozenset[str]] = {}
        if self.attributes is not None:
            check_link(root / self.attributes, root)
            table = _read_table(root / self.attributes, files.keys())
        return FolderImages(files, table, self)


class FolderImages(Dataset):
    """Images read from files.

    Args:
        files: relative name to file, in order.
        table: relative name to attributes.
        source: how they are read.
    """

    def __init__(self, files: dict[str, Path], table: dict[str, frozenset[str]], source: ImageFolder) -> None:
        self.concepts = source.concepts
        self.files = list(files.values())
        self.labels = [name.split("/")[0] if "/" in name else "" for name in files]
        self.attributes = [table.get(name, frozenset()) for name in files]
        self.is_test = systematic_test_share(self.labels)
        self.info = {"shape": (source.channels, source.size, source.size), "levels": 2**source.bits}
        self._bits = source.bits
        content = hashlib.sha256(repr((self.info, [sorted(names) for names in self.attributes])).encode())
        for name, file in files.items():
            data = file.read_bytes()
            opened(BytesIO(data), file).close()
            content.update(repr((name, len(data))).encode() + hashlib.sha256(data).digest())
        self.fingerprint = content.hexdigest()

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return ``id``, ``image`` (B, C, H, W) uint8 and ``label`` (B,) of the items ``ids``."""
        shape = self.info["shape"]
        images = torch.empty(len(ids), *shape, dtype=torch.uint8)
        for row, item in enumerate(ids.tolist()):
            images[row] = self._pixels(item)
        return {"id": ids, "image": images >> (8 - self._bits), "label": self.label_numbers[ids]}

    def _pixels(self, item: int) -> Tensor:
        """Return the central square of an image, resized, (C, size, size) uint8."""
        channels, size, _ = self.info["shape"]
        picture = read_picture(self.files[item], channels)
        square = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(square)).view(size, size, channels).permute(2, 0, 1)


def _is_image(file: Path, root: Path) -> bool:
    return file.suffix.lower() in ENDINGS and file.is_file() and not _is_hidden(file, root)


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _read_table(path: Path, names: Collection[str]) -> dict[str, frozenset[str]]:
    """Read the attributes of the files. Raises RecipeError for a file that does not exist."""
    text = read_text(path, "data.attributes")
    table = _from_json(text, path) if path.suffix.lower() == ".json" else _from_csv(text, path)
    for name in table:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.0)
            raise RecipeError(f"{path}: there is no image {name!r}. Names are relative to data.path, e.g. {near[0]!r}.")
    return table


def _from_json(text: str, path: Path) -> dict[str, frozenset[str]]:
    with reading(path):  # json raises other errors too: nested too deep
        try:
            found = json.loads(text)
        except ValueError as error:
            raise RecipeError(f"{path} is not JSON ({error}).") from error
    if not isinstance(found, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found.values()
    ):
        raise RecipeError(f'{path}: it must map file names to lists of text, e.g. {{"cat/1.png": ["black", "012"]}}.')
    return {name: frozenset(names) for name, names in found.items()}


def _from_csv(text: str, path: Path) -> dict[str, frozenset[str]]:
    with reading(path):
        rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows or len(rows[0]) < 2:
        raise RecipeError(f"{path}: the first line must name the columns: the file, then the attributes.")
    header = rows[0][1:]
    table = {}
    for name, *flags in rows[1:]:
        if len(flags) != len(header):
            raise RecipeError(
                f"{path}: the line of {name!r} has {len(flags) + 1} values; the header has {len(rows[0])}."
            )
        for attribute, flag in zip(header, flags, strict=True):
            if flag.strip().lower() not in YES | NO:
                raise RecipeError(f"{path}: {name!r} has {flag!r} for {attribute!r}; type 1 or 0.")
        table[name] = frozenset(a for a, flag in zip(header, flags, strict=True) if flag.strip().lower() in YES)
    return table
