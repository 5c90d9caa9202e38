"""Small image classifiers, which label samples and embed them for distances.

A feature net is a folder of two files. ``model.safetensors`` holds the weights of ``SmallNet``; ``config.json`` holds
``name``, ``labels`` (text, in the order of the outputs), ``groups`` (how many of the labels answer each question, where
there are several: a digit, and a colour), ``shape`` (C, H, W), ``levels`` (of the training images), ``channels`` (per
stage), ``features`` (D), ``accuracy`` and ``accuracy_n`` (on test images), and where it comes from.
``python -m unlearn.experiment.train_classifier`` trains and writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from typing_extensions import override

import unlearn
from unlearn.core.errors import RecipeError
from unlearn.data.base import Dataset
from unlearn.models.base import stored_weights
from unlearn.models.feature_extractors.base import Detector, in_colour
from unlearn.models.feature_extractors.torchscript import metric_name, scripted

ASSETS = Path(unlearn.__file__).parent / "assets"

PACKAGED: dict[str, tuple[int, int, int]] = {
    "digitnet8": (1, 8, 8),
    "digitnet28": (1, 28, 28),
    "colourdigitnet8": (3, 8, 8),
}
"""Feature nets that ship with the package, and the shape of the images they take."""

CHUNK = 512
"""Images per forward pass."""


class SmallNet(nn.Module):
    """Convolutional classifier: stages of two 3 x 3 convolutions and a pooling, then D features, then K classes.

    Args:
        shape: (C, H, W) of the images; 2**len(channels) must not exceed H or W.
        channels: width of each stage.
        features: D.
        classes: K.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int], features: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given, height, width = shape
        for wanted in channels:
            for taken in (given, wanted):
                layers += [nn.Conv2d(taken, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            given, height, width = wanted, height // 2, width // 2
        self.body: nn.Sequential = nn.Sequential(*layers, nn.Flatten(), nn.Linear(given * height * width, features))
        self.head = nn.Linear(features, classes)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return features (B, D) of inputs (B, C, H, W) in [-1, 1]."""
        return F.relu(self.body(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, K) of inputs (B, C, H, W) in [-1, 1]."""
        return self.head(self.embed(inputs))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Features(Detector):
    """A trained feature net, in eval mode.

    Attributes:
        groups: question -> labels that answer it, in the order of the outputs; G questions and K labels in all.
        shape: (C, H, W) of the images it takes.
        levels: number of grey levels of the images it will be given; black is 0, white is levels - 1.
        accuracy: share of test images for which it answered every question correctly after training.
        network: the net itself.
        frame: width in pixels of a border around the images that is cropped first.
    """

    groups: Mapping[str, tuple[str, ...]]
    shape: tuple[int, ...]
    levels: int
    accuracy: float
    network: SmallNet
    frame: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of all questions, in the order of the outputs."""
        return tuple(label for labels in self.groups.values() for label in labels)

    @property
    def sizes(self) -> list[int]:
        """Return the number of labels of each question."""
        return [len(labels) for labels in self.groups.values()]

    @override
    @property
    def detector(self) -> dict[str, str]:
        labels = "; ".join(f"{question}: {', '.join(labels)}" for question, labels in self.groups.items())
        return {**super().detector, "labels": labels}

    def to(self, device: torch.device | str) -> Features:
        """Move the net to a device and return it."""
        self.network.to(device)
        return self

    def classify(self, images: Tensor) -> Tensor:
        """Return the label of each image for each question, (B, G) int64, indices into ``labels``.

        Args:
            images: (B, C, H, W) uint8.
        """
        starts = accumulate(self.sizes, initial=0)
        chosen = [start + part.argmax(dim=1) for start, part in zip(starts, self._by_group(images), strict=False)]
        return torch.stack(chosen, dim=1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return (B, K) probabilities, which sum to 1 for each question, for images (B, C, H, W) uint8."""
        return torch.cat([part.softmax(dim=1) for part in self._by_group(images)], dim=1)

    def _by_group(self, images: Tensor) -> list[Tensor]:
        """Return the logits of each question, (B, K_g), on the device of the images."""
        head = self.network.head
        logits = head(self.embed(images).to(head.weight.device)).to(images.device)
        return list(logits.split(self.sizes, dim=1))

    def embed(self, images: Tensor) -> Tensor:
        """Return features (B, D) >= 0, on the device of the images, for images (B, C, H, W) uint8."""
        device = self.network.head.weight.device
        with torch.no_grad():
            parts = [self.network.embed(self.inputs(part.to(device))) for part in images.split(CHUNK)]
        return torch.cat(parts).to(images.device) if parts else torch.empty(0, self.network.head.in_features)

    def inputs(self, images: Tensor) -> Tensor:
        """Map grey levels 0 ... levels - 1 to [-1, 1], without the frame."""
        inside = slice(self.frame, images.shape[-1] - self.frame)
        return images[..., inside, inside].float() * (2 / (self.levels - 1)) - 1

    def known(self, dataset: Dataset) -> Tensor:
        """Return the right answer to each question for each item, (N, G) int64; -1 where the net has no such label.

        An item's label comes before its attributes.
        """
        index = {label: number for number, label in enumerate(self.labels)}
        members = [frozenset(labels) for labels in self.groups.values()]
        return torch.tensor(
            [
                [next((index[name] for name in (label, *sorted(more)) if name in group), -1) for group in members]
                for label, more in zip(dataset.labels, dataset.attributes, strict=True)
            ],
            dtype=torch.int64,
        ).view(len(dataset), len(members))


def features_for(info: Mapping[str, Any], name: str | None = None) -> Features:
    """Return the feature net for data described by ``info``: the one named (or in a folder), or one that fits.

    A net fits images of its shape, and those that have it without their frame.

    Raises:
        RecipeError: no net fits, or the one asked for does not.
    """
    shape, frame = tuple(info.get("shape", ())), info.get("frame", 0)
    inside = (*shape[:1], *(side - 2 * frame for side in shape[1:]))
    if name is None:
        name = next((net for net, takes in PACKAGED.items() if takes in (shape, inside)), None)
    if name is None:
        raise RecipeError(f"No feature net takes data of shape {shape}. {_nets()} {TRAIN_ONE}")
    net = load_features(name, info.get("levels"))
    if net.shape == inside:
        return replace(net, frame=frame)
    if net.shape != shape:
        raise RecipeError(
            f"The feature net {name} takes images of shape {net.shape}; the data has {shape}. {_nets()} {TRAIN_ONE}"
        )
    return net


@dataclass(frozen=True)
class ScriptedFeatures(Detector):
    """A user's own embedder of images without labels as a TorchScript file, such as an Inception net.

    It is called as ``net(images, return_features=True)`` with images (B, 3, H, W) uint8 of 0 ... 255, and returns
    features (B, D). NVIDIA's ``inception-2015-12-05.pt`` is one; the Frechet distance in it is what StyleGAN's code
    calls FID.

    Attributes:
        levels: number of grey levels of the images it will be given.
        network: the net itself.
    """

    levels: int
    network: torch.jit.ScriptModule

    def to(self, device: torch.device | str) -> ScriptedFeatures:
        """Move the net to a device and return it."""
        self.network.to(device)
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Return features (B, D), on the device of the images, for images (B, C, H, W) uint8."""
        place = next((tensor.device for tensor in self.network.parameters()), images.device)
        scaled = in_colour((images.float() * (255 / (self.levels - 1))).round().to(torch.uint8))
        with torch.no_grad():
            parts = [self.network(part.to(place), return_features=True) for part in scaled.split(CHUNK)]
        return torch.cat(parts).to(images.device)


def embedder_for(info: Mapping[str, Any], name: str | None = None) -> Features | ScriptedFeatures:
    """Return the net for feature distances: a TorchScript file by its path, or what ``features_for`` finds.

    Raises:
        RecipeError: there is none.
    """
    if name is None or not name.endswith(".pt"):
        return features_for(info, name)
    sha256, network = scripted(name, "feature net")
    return ScriptedFeatures(metric_name(name), sha256, info.get("levels", 256), network)


def load_features(name: str, levels: int | None = None) -> Features:
    """Read a packaged feature net, or one in a folder.

    Args:
        name: a key of ``PACKAGED``, or a folder.
        levels: grey levels of the images it will be given; by default those of its training images.
    """
    folder = ASSETS / name if name in PACKAGED else Path(name)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise RecipeError(f"No feature net is at {name}: {folder / file} is missing. {_nets()} {TRAIN_ONE}")
    try:
        files = [(folder / file).read_bytes() for file in ("config.json", "model.safetensors")]
        about = json.loads(files[0])
        labels = about["labels"]
        network = fresh(about["shape"], about["channels"], about["features"], len(labels)).float()  # in any default
        network.load_state_dict(load(files[1]))
        return Features(
            name=about["name"],
            sha256=hashlib.sha256(b"".join(files)).hexdigest(),
            groups=_groups(labels, about.get("groups", {"label": len(labels)})),
            shape=tuple(about["shape"]),
            levels=levels or about["levels"],
            accuracy=about["accuracy"],
            network=network,
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise RecipeError(f"The feature net at {folder} cannot be read ({error}). {TRAIN_ONE}") from error


def save_features(features: Features, folder: Path, about: Mapping[str, Any]) -> None:
    """Write a feature net into a folder; ``about`` says where it comes from."""
    network = features.network
    config = {
        "name": features.name,
        "labels": list(features.labels),
        "groups": dict(zip(features.groups, features.sizes, strict=True)),
        "shape": list(features.shape),
        "levels": features.levels,
        "channels": [layer.out_channels for layer in network.body if isinstance(layer, nn.Conv2d)][::2],  # two each
        "features": network.head.in_features,
        "accuracy": round(features.accuracy, 4),
        **about,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored_weights(network), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _groups(labels: Sequence[str], sizes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return the labels by question. Raises ValueError where the sizes do not sum to their number."""
    if sum(sizes.values()) != len(labels):
        raise ValueError(f"groups hold {sum(sizes.values())} labels of {len(labels)}")
    left = iter(labels)
    return {question: tuple(islice(left, size)) for question, size in sizes.items()}


def fresh(shape: Sequence[int], channels: Sequence[int], features: int, classes: int, seed: int = 0) -> SmallNet:
    """Return a net in eval mode with weights drawn by the seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SmallNet(shape, channels, features, classes).eval().requires_grad_(False)


TRAIN_ONE = (
    "To train one on your own labelled images: python -m unlearn.experiment.train_classifier --images FOLDER "
    "--output NET (or --recipe NAME: on that recipe's data); then give features: NET."
)


def _nets() -> str:
    return "Packaged: " + ", ".join(f"{name} {shape}" for name, shape in PACKAGED.items()) + "."
