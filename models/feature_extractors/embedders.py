"""What tells images apart, with gradient: who is seen (identity), and how alike two images look (perceptual)."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol

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


@dataclass(frozen=True)
class Embedder:
    """Says who or what an image shows, as D values.

    Attributes:
        name: as it stands in ``about.features`` of records.
        sha256: of the files that it was read from.
        network: a ``Network``, or a TorchScript module that maps images (B, C, H, W) in [-1, 1] to (B, D).
        metric: ``l2``: Euclidean distance; ``cosine``: 1 - cos.
    """

    name: str
    sha256: str
    network: Any
    metric: Literal["l2", "cosine"]

    @property
    def detector(self) -> dict[str, str]:
        """Return what a record says of the net behind its figure."""
        return {"name": self.name, "sha256": self.sha256}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the embeddings, (B, D), of images (B, C, H, W) in [-1, 1], with gradient; the net follows them.

        The net moves to the device of the images, and reads them in single precision.
        """
        network = _beside(self.network, images)
        found: Tensor
        if isinstance(network, torch.jit.ScriptModule):
            found = network(images.float())
            return found
        found = network.embed(network.layers(images.float()))
        return found

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, (B,), between embeddings (B, D); the gradient is 0 where they are equal."""
        if self.metric == "l2":
            found: Tensor = (a - b).norm(dim=1)
            return found
        return 1 - F.cosine_similarity(a, b, dim=1)


@dataclass(frozen=True)
class Perceptual:
    """How different two images look to a frozen net.

    LPIPS with all its weights 1 and the mean over layers in place of their sum: every position's features are brought
    to unit length over the channels; the distance is the squared difference, summed over channels and averaged over
    positions and layers. 0 ... 4, for features >= 0 at most 2.

    Attributes:
        name: as it stands in ``about.features`` of records; it names the net, as this is no LPIPS.
        sha256: of the files that the net was read from.
        network: a ``Network``, or a TorchScript module that maps two batches of images in [-1, 1] to B distances.

    Reference:
        Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018, eq. 1.
        arXiv:1801.03924
    """

    name: str
    sha256: str
    network: Any

    @property
    def detector(self) -> dict[str, str]:
        """Return what a record says of the net behind its figure."""
        return {"name": self.name, "sha256": self.sha256}

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, (B,), between images (B, C, H, W) in [-1, 1], with gradient."""
        return self.between(self.features(a), self.features(b))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return what ``between`` compares, with gradient: (B, D, h, w) of unit length over D, one a layer."""
        network = _beside(self.network, images)
        if isinstance(network, torch.jit.ScriptModule):
            return [images.float()]
        return self.of_layers(self.network.layers(images.float()))

    def of_layers(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Return what ``between`` compares, of features that ``network.layers`` gave."""
        return [F.normalize(layer, dim=1, eps=1e-10) for layer in layers]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Return the distances, (B,), between images whose ``features`` are known."""
        if isinstance(self.network, torch.jit.ScriptModule):
            found: Tensor = self.network(a[0], b[0])
            return found.flatten()
        terms = [(x - y).square().sum(dim=1).flatten(1).mean(dim=1) for x, y in zip(a, b, strict=True)]
        return torch.stack(terms).mean(dim=0)


def identity_net(name: str | None, shape: Sequence[int]) -> Embedder:
    """Return the embedder of a name, or the packaged one that fits images of a shape.

    Args:
        name: ``dlib_face`` or ``mobile_face`` for faces, a packaged feature net (``digitnet8``) or the folder of one,
            or a TorchScript file (``.pt``: ArcFace, say), which takes images (B, C, H, W) in [-1, 1] as they are and
            whose embeddings are told apart by 1 - cos.
        shape: (C, H, W).

    Raises:
        RecipeError: there is no such net, or it does not take such images.
    """
    found, sha256, network = _network(name, tuple(shape), "identity")
    if isinstance(network, torch.jit.ScriptModule):
        given = answer(network, shape, f"identity net {name}")
        if len(given) != 2 or given[0] != BLANK:
            raise RecipeError(
                f"The identity net {name} maps images {(BLANK, *shape)} to {given}; it must give one row an image, "
                f"({BLANK}, D). Type another file."
            )
    return Embedder(found, sha256, network, "l2" if isinstance(network, DlibFace) else "cosine")


def perceptual_net(name: str | None, shape: Sequence[int]) -> Perceptual:
    """Return the perceptual distance in the features of a net, or in those of the packaged one that fits a shape.

    Args:
        name: as for ``identity_net``; a TorchScript file (LPIPS, say) takes two batches of images (B, C, H, W) in
            [-1, 1] and gives B distances.
        shape: (C, H, W).

    Raises:
        RecipeError: there is no such net, or it does not take such images.
    """
    found, sha256, network = _network(name, tuple(shape), "perceptual")
    if not isinstance(network, torch.jit.ScriptModule):
        return Perceptual(f"perceptual_{found}", sha256, network)
    given = answer(network, shape, f"perceptual net {name}", 2)
    if math.prod(given) != BLANK:
        raise RecipeError(
            f"The perceptual net {name} maps two batches of images {(BLANK, *shape)} to {given}; it must give one "
            f"distance a pair, ({BLANK},). Type another file."
        )
    return Perceptual(found, sha256, network)


@dataclass(frozen=True)
class Attributes:
    """Says what an image shows, as probabilities.

    Attributes:
        name: as it stands in ``about.features`` of records.
        sha256: of the files that it was read from.
        labels: what it knows, K of it.
        network: maps images (B, C, H, W) in [-1, 1] to probabilities (B, K).
        numbered: whether the labels are only numbers, of a net that names nothing.
        frame: width in pixels of what stands around the images, and is not looked at.
    """

    name: str
    sha256: str
    labels: tuple[str, ...]
    network: Callable[[Tensor], Tensor]
    numbered: bool = False
    frame: int = 0

    @property
    def detector(self) -> dict[str, str]:
        """Return what a record says of the net behind its figure."""
        return {"name": self.name, "sha256": self.sha256, "labels": ", ".join(self.labels)}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the probabilities, (B, K), of images (B, C, H, W) in [-1, 1], with gradient."""
        inside = slice(self.frame, images.shape[-1] - self.frame)
        return self.network(images[..., inside, inside].float())


def attribute_net(name: str | None, shape: Sequence[int], frame: int = 0) -> Attributes:
    """Return a classifier, or the packaged one that fits images of a shape, or what is inside of their frame.

    Args:
        name: ``mobile_face`` for faces (``looks_male``, and ``looks_over_40``: the share of its guesses of age beyond
            40 years), a packaged feature net (``digitnet8``) or the folder of one, or a TorchScript file (``.pt``) that
            maps images (B, C, H, W) in [-1, 1] to logits (B, K), or (B,) of one label; its labels are ``0`` ... K - 1.
        shape: (C, H, W).
        frame: width in pixels of what stands around the images.

    Raises:
        RecipeError: there is no such net, or it does not take such images.
    """
    whole = tuple(shape)
    inside = (*whole[:1], *(side - 2 * frame for side in whole[1:]))
    if name is None and not {whole, inside} & set(PACKAGED.values()) and _is_face(whole):
        name = "mobile_face"
    frame = frame if _looks_inside(name, whole, inside) else 0
    found, sha256, network = _network(name, inside if frame else whole, "attribute")
    if isinstance(network, MobileFace):
        return Attributes(found, sha256, ("looks_male", "looks_over_40"), partial(_of_face, network))
    if isinstance(network, Stages):
        labels, sizes = _labels(name or found)
        return Attributes(found, sha256, labels, partial(_of_groups, network, sizes), frame=frame)
    if isinstance(network, torch.jit.ScriptModule):
        given = answer(network, shape, f"attribute net {name}")
        if len(given) > 2 or given[:1] != (BLANK,):
            raise RecipeError(
                f"The attribute net {name} maps images {(BLANK, *whole)} to {given}; it must give logits ({BLANK}, K), "
                f"or ({BLANK},) of one label. Type another file."
            )
        labels = tuple(str(number) for number in range(math.prod(given[1:])))
        return Attributes(found, sha256, labels, partial(_of_script, network), numbered=True)
    raise RecipeError(f"{name} names nothing; it only tells faces apart. Type mobile_face.")


def _looks_inside(name: str | None, whole: tuple[int, ...], inside: tuple[int, ...]) -> bool:
    """Return whether the small net of a name, or the packaged one that fits, looks at images without their frame."""
    if name is None:
        return whole not in PACKAGED.values() and inside in PACKAGED.values()
    return name not in FACE_NETS and not name.endswith(".pt") and _takes(name, "attribute") == inside


def _of_face(network: MobileFace, images: Tensor) -> Tensor:
    found = _beside(network, images)
    embeddings = found.embed(found.layers(images))
    return torch.stack([found.male(embeddings), found.ages(embeddings)[:, 40:].sum(dim=1)], dim=1)


def _of_groups(network: Stages, sizes: Sequence[int], images: Tensor) -> Tensor:
    found = _beside(network, images)
    logits = found.net.head(found.embed(found.layers(images)))
    return torch.cat([part.softmax(dim=1) for part in logits.split(sizes, dim=1)], dim=1)


def _of_script(network: torch.jit.ScriptModule, images: Tensor) -> Tensor:
    logits: Tensor = _beside(network, images)(images)
    logits = logits.reshape(len(images), -1)
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


@cache
def _labels(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    found = load_features(name)
    return found.labels, tuple(len(labels) for labels in found.groups.values())


def _network(name: str | None, shape: tuple[int, ...], what: str) -> tuple[str, str, Any]:
    """Return name, hash and network; ``what`` stands in the error message."""
    if name is None:
        name = next((net for net, takes in PACKAGED.items() if takes == shape), None)
        if name is None and _is_face(shape):
            name = "dlib_face"
        if name is None:
            raise RecipeError(
                f"No packaged {what} net takes images of shape {shape}. {_packaged()} Or type the path of a "
                "TorchScript file."
            )
    if name in FACE_NETS:
        if not _is_face(shape):
            raise RecipeError(
                f"The {what} net {name} looks at faces of {LEAST} x {LEAST} pixels or more; the images have shape "
                f"{shape}. {_packaged()}"
            )
        return name, *_face_net(name)
    if name.endswith(".pt"):
        stem = "".join(letter if letter.isalnum() else "_" for letter in Path(name).stem)
        return stem, *scripted(name, f"{what} net")
    takes = _takes(name, what)
    sha256, network, _ = _small_net(name)
    if takes != shape:
        raise RecipeError(f"The {what} net {name} takes images of shape {takes}; these have {shape}. {_packaged()}")
    return Path(name).name, sha256, network


def _takes(name: str, what: str) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the images that a small net takes."""
    if name not in PACKAGED and not Path(name).expanduser().is_dir():
        raise RecipeError(
            f"There is no {what} net {name!r}: it is no packaged net, no folder of one and no TorchScript file "
            f"(FILE.pt). {did_you_mean(name, [*FACE_NETS, *PACKAGED])}"
        )
    return _small_net(name)[2]


LEAST = 32
"""Pixels that a face has at least on a side."""

FACE_NETS: dict[str, Callable[[dict[str, Tensor]], nn.Module]] = {"dlib_face": DlibFace, "mobile_face": MobileFace}
"""Packaged nets of faces, and what builds them of their weights."""


def _is_face(shape: tuple[int, ...]) -> bool:
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
def _small_net(name: str) -> tuple[str, Stages, tuple[int, ...]]:
    found = load_features(name)
    return found.sha256, Stages(found.network.float()), found.shape  # single also where the run is in double precision


def scripted(file: str, what: str) -> tuple[str, torch.jit.ScriptModule]:
    """Return the hash of a TorchScript file and its module, which holds still; read again where the file has changed.

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


def _beside(network: Any, images: Tensor) -> Any:
    """Return the network, moved to where the images are."""
    place = next((tensor.device for tensor in (*network.buffers(), *network.parameters())), images.device)
    return network if place == images.device else network.to(images.device)
