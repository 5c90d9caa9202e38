"""Identities that a generator draws, each given by a seed, an image or a latent, and strangers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import NonNegativeInt, PositiveInt, at_least
from unlearn.data.base import Batch, Dataset, Source, numbered
from unlearn.data.image_io import read_picture

IdentityForm = Literal["seed", "image", "w"]

FIRST_STRANGER = 1_000_000
"""First seed of the strangers, so that they are the same whoever is forgotten."""


@dataclass
class Identity:
    """A person whom a generator draws: one of ``seed``, ``image`` and ``latent``.

    Args:
        seed: number from which the latent is drawn.
        image: image file, resized to the generator's size; its latent is found by inversion.
        latent: safetensors file whose tensor ``w``, or only tensor, is (w_dim,), or (num_ws, w_dim): one per layer.
        name: by default ``seed 7``, or the file's name.
        others: further images of the same person, never trained on.
    """

    seed: int | None = None
    image: str | None = None
    latent: str | None = None
    name: str = ""
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = [key for key in ("seed", "image", "latent") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"an identity has one of seed, image and latent, not {' and '.join(given) or 'none'}")
        at_least(self, seed=0)
        if not self.name:
            self.name = f"seed {self.seed}" if self.seed is not None else Path(str(self.image or self.latent)).stem


@dataclass
class Identities(Source):
    """Identities to forget (attribute ``forget``), and strangers to keep (``retain``).

    Labels are the names of the identities; strangers have none. Further images of an identity are test items with its
    label and the attributes ``forget`` and ``same_person`` (the holdout); the test strangers have the attribute
    ``strangers``. Strangers are seeds that no identity has.

    Args:
        identities: whom to forget.
        strangers: number of strangers to keep.
        test_strangers: number of strangers that no method sees.
    """

    identities: list[Identity] = field(default_factory=lambda: [Identity(seed=7)])
    strangers: PositiveInt = 256
    test_strangers: NonNegativeInt = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forget = self.forget.or_label("forget")
        self.retain = self.retain.or_label("retain")

    @override
    def load(self) -> Dataset:
        """Read the files; needs no network. Raises RecipeError for a file that is wrong, or an identity given twice."""
        if not self.identities:
            raise RecipeError("data=identities needs somebody to forget. Type data.identities=[{seed: 7}].")
        names = [identity.name for identity in self.identities]
        if twice := {name for name in names if names.count(name) > 1}:
            raise RecipeError(f"data.identities: {min(twice)!r} occurs twice. Give each identity its own name.")
        taken = {identity.seed for identity in self.identities}
        numbers = (number for number in range(FIRST_STRANGER, FIRST_STRANGER + 2**31) if number not in taken)
        rows = [_row(identity) for identity in self.identities]
        rows += [
            IdentityItem("image", _read(path), identity.name, frozenset({"forget", "same_person"}), test=True)
            for identity in self.identities
            for path in identity.others
        ]
        _refuse_the_same(rows)
        rows += [IdentityItem("seed", next(numbers), "", frozenset({"retain"})) for _ in range(self.strangers)]
        rows += [
            IdentityItem("seed", next(numbers), "", frozenset({"strangers"}), True) for _ in range(self.test_strangers)
        ]
        return IdentityData(rows)


@dataclass(frozen=True)
class IdentityItem:
    """An item.

    Args:
        kind: how it is given.
        content: the seed; the image, (H, W, 3) uint8; or the latent, (k, w_dim).
        label: name of the identity; empty for strangers.
        attributes: see Identities.
        test: whether it is a test item.
    """

    kind: IdentityForm
    content: Any
    label: str
    attributes: frozenset[str]
    test: bool = False

    @property
    def raw(self) -> bytes:
        """The content without its shape, to be compared and hashed."""
        return str(self.content).encode() if self.kind == "seed" else np.asarray(self.content).tobytes()


def fits(shape: Sequence[int], latent: Sequence[int]) -> bool:
    """Whether a latent, (w_dim,), (1, w_dim) or (num_ws, w_dim), fits a model whose latents are ``latent``."""
    layers, width = (1, *shape)[-2:]
    return len(shape) in (1, 2) and layers in (1, latent[0]) and width == latent[1]


class IdentityData(Dataset):
    """Items that are seeds, images or latents; images have no shape before the generator is known (``shaped``)."""

    def __init__(self, rows: Sequence[IdentityItem]) -> None:
        self.rows = rows
        self.labels = [row.label for row in rows]
        self.attributes = [row.attributes for row in rows]
        self.is_test: Tensor = torch.tensor([row.test for row in rows])
        self.info = {}
        content = hashlib.sha256(
            repr([(row.kind, row.label, sorted(row.attributes), row.test) for row in rows]).encode()
        )
        for row in rows:
            content.update(row.raw)
        self.fingerprint = content.hexdigest()

    @override
    @cached_property
    def clusters(self) -> Tensor:
        return numbered(self.labels)

    def kind(self, item: int) -> IdentityForm:
        """Return how an item is given."""
        return self.rows[item].kind

    def shaped(self, shape: tuple[int, ...], levels: int, latent: tuple[int, int]) -> IdentityData:
        """Return the same items for a generator.

        Args:
            shape: (C, H, W) of its images.
            levels: grey levels of its images.
            latent: (num_ws, w_dim), the shape of its latents.

        Raises:
            RecipeError: the latent of an identity does not fit.
        """
        for row in self.rows:
            if row.kind == "w" and not fits(row.content.shape, latent):
                raise RecipeError(
                    f"data.identities: the latent of {row.label!r} is {tuple(row.content.shape)}; those of the model "
                    f"are {latent}, or ({latent[1]},) for all layers. Give another file, or the model it belongs to."
                )
        other = copy.copy(self)
        other.info = {"shape": tuple(shape), "levels": levels, "latent": latent}
        return other

    may_be_nan = ("w",)

    @override
    def batch(self, ids: Tensor) -> Batch:
        """Return ``id`` and ``label`` (B,), and ``seed``, ``image`` or ``w`` if any item is given that way.

        ``seed`` is (B,) int64, ``image`` (B, C, H, W) uint8 and ``w`` (B, k, w_dim). If a batch mixes kinds, the
        other items hold -1, 0 and nan. A latent for all layers is repeated if others have one per layer.
        """
        rows = [self.rows[item] for item in ids.tolist()]
        found: Batch = {"id": ids, "label": self.label_numbers[ids]}
        kinds = {row.kind for row in rows}
        if "seed" in kinds:
            found["seed"] = torch.tensor([row.content if row.kind == "seed" else -1 for row in rows])
        if "image" in kinds:
            empty = torch.zeros(self._shape, dtype=torch.uint8)
            found["image"] = torch.stack([self._image(row) if row.kind == "image" else empty for row in rows])
        if "w" in kinds:
            shapes = {tuple(row.content.shape) for row in rows if row.kind == "w"}
            widths, layers = {width for _, width in shapes}, {1, *(number for number, _ in shapes)}
            if len(widths) > 1 or len(layers) > 2:
                raise RecipeError(f"data.identities: the latents have different shapes {sorted(shapes)}. Give one.")
            shape = (max(number for number, _ in shapes), widths.pop())
            empty = torch.full(shape, torch.nan)
            found["w"] = torch.stack([row.content.expand(shape) if row.kind == "w" else empty for row in rows])
        return found

    @property
    def _shape(self) -> tuple[int, ...]:
        if "shape" not in self.info:
            raise RecipeError(
                "data.identities holds images, and the size of the model's images is not known. "
                "Type model.pretrained=FOLDER."
            )
        return tuple(self.info["shape"])

    def _image(self, row: IdentityItem) -> Tensor:
        """Return the central square of an image with the size and levels of the generator's, (C, H, W) uint8."""
        channels, height, width = self._shape
        picture = Image.fromarray(row.content)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).convert("L" if channels == 1 else "RGB")
        if square.size != (width, height):
            square = square.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(square)).view(height, width, channels).permute(2, 0, 1)
        scale: float = (self.info["levels"] - 1) / 255
        return (pixels.float() * scale).round().to(torch.uint8)


def _row(identity: Identity) -> IdentityItem:
    wanted = frozenset({"forget"})
    if identity.seed is not None:
        return IdentityItem("seed", identity.seed, identity.name, wanted)
    if identity.image is not None:
        return IdentityItem("image", _read(identity.image), identity.name, wanted)
    return IdentityItem("w", _latent(str(identity.latent)), identity.name, wanted)


def _refuse_the_same(rows: Sequence[IdentityItem]) -> None:
    """Raise RecipeError for equal items under different names, because they would count twice."""
    known: dict[tuple[Any, ...], str] = {}
    for row in rows:
        content = (row.kind, np.shape(row.content), row.raw)
        if content in known:
            what = {"seed": f"the seed {row.content}", "image": "one image", "w": "one latent"}[row.kind]
            raise RecipeError(f"data.identities: {known[content]!r} and {row.label!r} are the same, {what}. Drop one.")
        known[content] = row.label


def _read(path: str) -> Any:
    """Return an image, (H, W, 3) uint8."""
    try:
        return np.array(read_picture(Path(expanduser(path)), 3))
    except RecipeError as error:
        raise RecipeError(f"data.identities: {error}") from error


def _latent(path: str) -> Tensor:
    """Return a latent, (k, w_dim) float32."""
    try:
        tensors = load_file(Path(expanduser(path)))
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"data.identities: {path} is not a readable safetensors file ({error}).") from error
    found = tensors.get("w", next(iter(tensors.values())) if len(tensors) == 1 else None)
    fine = found is not None and found.numel() and found.ndim in (1, 2) and found.is_floating_point()
    if found is None or not fine or not found.float().isfinite().all():  # a double can be too large
        raise RecipeError(
            f"data.identities: {path} must hold a tensor w of finite numbers, (w_dim,) or (num_ws, w_dim); it holds "
            f"{', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in tensors.items()) or 'nothing'}."
        )
    return found.float().reshape(-1, found.shape[-1])
