"""The frozen networks behind embedders: packaged nets of faces, small classifiers, and TorchScript files."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.models.feature_extractors.classifiers import ASSETS, PACKAGED, SmallNet, load_features
from unlearn.models.feature_extractors.face_nets import DlibFace, MobileFace
from unlearn.models.feature_extractors.tensorflow_js import stored_values


class Network(Protocol):
    """A frozen net whose features can be seen layer by layer."""

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the features (B, D, h, w) of a few layers, of images (B, C, H, W) in [-1, 1]."""

    def embed(self, layers: list[Tensor]) -> Tensor:
        """Return the embedding (B, D) that ``layers`` lead to, without computing them again."""


class Stages(nn.Module):
    """A small classifier by its stages: the features before each pooling, and the last D.

    Args:
        net: a feature net.
    """

    def __init__(self, net: SmallNet) -> None:
        super().__init__()
        self.net = net

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the features before each pooling."""
        found, x = [], images
        for layer in self.net.body:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            if isinstance(layer, nn.Flatten):
                return found
            x = layer(x)
        return found

    def embed(self, layers: list[Tensor]) -> Tensor:
        """Return the last D features, (B, D) >= 0."""
        x = layers[-1]
        parts = list(self.net.body)
        at = [index for index, layer in enumerate(parts) if isinstance(layer, nn.MaxPool2d)][-1]
        for layer in parts[at:]:
            x = layer(x)
        return F.relu(x)


def find_network(name: str | None, shape: tuple[int, ...], what: str) -> tuple[str, str, Any]:
    """Return name, hash and network; ``what`` names its use in error messages."""
    if name is None:
        name = next((net for net, takes in PACKAGED.items() if takes == shape), None)
        if name is None and is_face(shape):
            name = "dlib_face"
        if name is None:
            raise RecipeError(
                f"No packaged {what} net takes images of shape {shape}. {_packaged()} Or type the path of a "
                "TorchScript file."
            )
    if name in FACE_NETS:
        if not is_face(shape):
            raise RecipeError(
                f"The {what} net {name} looks at faces of {LEAST} x {LEAST} pixels or more; the images have shape "
                f"{shape}. {_packaged()}"
            )
        return name, *_face_net(name)
    if name.endswith(".pt"):
        stem = "".join(letter if letter.isalnum() else "_" for letter in Path(name).stem)
        return stem, *scripted(name, f"{what} net")
    takes = accepted_shape(name, what)
    sha256, network, _ = small_net(name)
    if takes != shape:
        raise RecipeError(f"The {what} net {name} takes images of shape {takes}; these have {shape}. {_packaged()}")
    return Path(name).name, sha256, network


def accepted_shape(name: str, what: str) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the images that a small net takes."""
    if name not in PACKAGED and not Path(name).expanduser().is_dir():
        raise RecipeError(
            f"There is no {what} net {name!r}: it is no packaged net, no folder of one and no TorchScript file "
            f"(FILE.pt). {did_you_mean(name, [*FACE_NETS, *PACKAGED])}"
        )
    return small_net(name)[2]


LEAST = 32
"""Pixels that a face has at least on a side."""

FACE_NETS: dict[str, Callable[[dict[str, Tensor]], nn.Module]] = {"dlib_face": DlibFace, "mobile_face": MobileFace}
"""Packaged nets of faces, and what builds them of their weights."""


def is_face(shape: tuple[int, ...]) -> bool:
    """Return whether nets of faces take images of a shape."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= LEAST


def _packaged() -> str:
    small = ", ".join(f"{name} {shape}" for name, shape in PACKAGED.items())
    return f"Packaged: {', '.join(FACE_NETS)} (faces of {LEAST} pixels or more), {small}."


@cache
def _face_net(name: str) -> tuple[str, nn.Module]:
    folder = ASSETS / name
    files = sorted(folder.glob("weights_*.safetensors"))
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest(), FACE_NETS[name](stored_values(folder))


@cache
def small_net(name: str) -> tuple[str, Stages, tuple[int, ...]]:
    """Return hash and stages of a small classifier, and the shape of the images that it takes."""
    found = load_features(name)
    return found.sha256, Stages(found.network.float()), found.shape  # single also where the run is in double precision


def scripted(file: str, what: str) -> tuple[str, torch.jit.ScriptModule]:
    """Return the hash of a TorchScript file and its frozen module; it is read again where the file has changed.

    Args:
        file: its path.
        what: it is, for the error message.

    Raises:
        RecipeError: there is no such file, or it is none.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise RecipeError(f"No {what} is at {file}: there is no such file.")
    return _scripted(path, path.stat().st_mtime_ns)


@cache
def _scripted(path: Path, changed: int) -> tuple[str, torch.jit.ScriptModule]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # published nets are TorchScript all the same
            network = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise RecipeError(f"{path} is no TorchScript file ({error}).") from error
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return hashlib.sha256(path.read_bytes()).hexdigest(), network


BLANK = 2
"""Blank images that a net of one's own is tried on, before any work."""


def answer(network: torch.jit.ScriptModule, shape: Sequence[int], what: str, batches: int = 1) -> tuple[int, ...]:
    """Return the shape of what a TorchScript module makes of ``BLANK`` black images (C, H, W).

    Args:
        network: the module.
        shape: (C, H, W).
        what: it is, with its path, for the error message.
        batches: of images that it takes at once.

    Raises:
        RecipeError: it fails on them, or gives no tensor of floating-point numbers.
    """
    found = _answer(network, tuple(shape), batches)
    if isinstance(found, str):
        raise RecipeError(
            f"The {what} fails on {batches} batch{'es' if batches > 1 else ''} of images {(BLANK, *shape)}: {found}. "
            "Type another file."
        )
    return found


@cache
def _answer(network: torch.jit.ScriptModule, shape: tuple[int, ...], batches: int) -> tuple[int, ...] | str:
    """Return a shape, or what went wrong in one line."""
    place = next((tensor.device for tensor in (*network.buffers(), *network.parameters())), None)
    try:
        with torch.no_grad():
            found = network(*[torch.zeros(BLANK, *shape, dtype=torch.float32, device=place) for _ in range(batches)])
    except Exception as error:  # whatever somebody's own code raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if "Error" in line), lines[0] if lines else type(error).__name__)[:300]
    if not isinstance(found, Tensor) or not found.is_floating_point():
        return f"it gives {type(found).__name__ if not isinstance(found, Tensor) else found.dtype}, no real numbers"
    return tuple(found.shape)


def on_device_of(network: Any, images: Tensor) -> Any:
    """Return the network, moved to where the images are."""
    place = next((tensor.device for tensor in (*network.buffers(), *network.parameters())), images.device)
    return network if place == images.device else network.to(images.device)
