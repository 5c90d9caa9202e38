"""Small classifiers of real images: they name what a sample shows, and embed it for distances.

A feature net is a folder of two files. ``model.safetensors`` holds the weights of ``SmallNet``; ``config.json`` holds
``name``, ``labels`` (text, in the order of the outputs), ``shape`` (C, H, W), ``levels`` (of the training images),
``channels`` (a stage), ``features`` (D), ``accuracy`` and ``accuracy_n`` (on test images), and where it comes from.
``python -m unlearn.evaluators.features`` trains and writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import unlearn
from unlearn.data.base import Dataset
from unlearn.errors import RecipeError

ASSETS = Path(unlearn.__file__).parent / "assets"

PACKAGED: dict[str, tuple[int, int, int]] = {"digitnet8": (1, 8, 8), "digitnet28": (1, 28, 28)}
"""Feature nets that ship, and the shape of the images they take."""

CHUNK = 512
"""Images a forward pass."""


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
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(given * height * width, features))
        self.head = nn.Linear(features, classes)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return features (B, D) of inputs (B, C, H, W) in [-1, 1]."""
        return F.relu(self.body(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, K) of inputs (B, C, H, W) in [-1, 1]."""
        return self.head(self.embed(inputs))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Features:
    """A trained feature net, in eval mode.

    Attributes:
        name: as it stands in metric names, e.g. ``frechet_digitnet8``.
        labels: what the classes are called.
        shape: (C, H, W) of the images it takes.
        levels: number of grey levels of the images it will be given; black is 0, white is levels - 1.
        accuracy: share of real test images that it classified rightly after training.
        network: the net itself.
    """

    name: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    levels: int
    accuracy: float
    network: SmallNet

    def to(self, device: torch.device | str) -> Features:
        """Move the net to a device and return it."""
        self.network.to(device)
        return self

    def classify(self, images: Tensor) -> Tensor:
        """Return the class of each image, (B,) int64, an index into ``labels``, for images (B, C, H, W) uint8."""
        return self.probabilities(images).argmax(dim=1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return (B, K) probabilities for images (B, C, H, W) uint8."""
        head = self.network.head
        return head(self.embed(images).to(head.weight.device)).softmax(dim=1).to(images.device)  # type: ignore[no-any-return]

    def embed(self, images: Tensor) -> Tensor:
        """Return features (B, D) >= 0, on the device of the images, for images (B, C, H, W) uint8."""
        device = self.network.head.weight.device
        with torch.no_grad():
            parts = [self.network.embed(self.inputs(part.to(device))) for part in images.split(CHUNK)]
        return torch.cat(parts).to(images.device) if parts else torch.empty(0, self.network.head.in_features)

    def inputs(self, images: Tensor) -> Tensor:
        """Map grey levels 0 ... levels - 1 to [-1, 1]."""
        return images.float() * (2 / (self.levels - 1)) - 1

    def known(self, dataset: Dataset) -> Tensor:
        """Return the class of each item of a dataset, (N,) int64, -1 where the net has no such label."""
        index = {label: number for number, label in enumerate(self.labels)}
        return torch.tensor([index.get(label, -1) for label in dataset.labels], dtype=torch.int64)


def features_for(info: Mapping[str, Any], name: str | None = None) -> Features:
    """Return the feature net for data described by ``info``: the one named (or in a folder), or one that fits.

    Raises:
        RecipeError: no net fits, or the one asked for does not.
    """
    shape = tuple(info.get("shape", ()))
    if name is None:
        name = next((net for net, takes in PACKAGED.items() if takes == shape), None)
    if name is None:
        raise RecipeError(f"No feature net takes data of shape {shape}. {_nets()} {TRAIN_ONE}")
    net = load_features(name, info.get("levels"))
    if net.shape != shape:
        raise RecipeError(
            f"The feature net {name} takes images of shape {net.shape}; the data has {shape}. {_nets()} {TRAIN_ONE}"
        )
    return net


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
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        network = fresh(about["shape"], about["channels"], about["features"], len(about["labels"]))
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return Features(
            name=about["name"],
            labels=tuple(about["labels"]),
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
        "shape": list(features.shape),
        "levels": features.levels,
        "channels": [layer.out_channels for layer in network.body if isinstance(layer, nn.Conv2d)][::2],
        "features": network.head.in_features,
        "accuracy": round(features.accuracy, 4),
        **about,
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def fresh(shape: Sequence[int], channels: Sequence[int], features: int, classes: int, seed: int = 0) -> SmallNet:
    """Return a net in eval mode with weights drawn by the seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SmallNet(shape, channels, features, classes).eval().requires_grad_(False)


TRAIN_ONE = (
    "To train one on your own labelled images: python -m unlearn.evaluators.features --images FOLDER --output NET; "
    "then give features: NET."
)


def _nets() -> str:
    return "Packaged: " + ", ".join(f"{name} {shape}" for name, shape in PACKAGED.items()) + "."


if __name__ == "__main__":
    from unlearn.evaluators.feature_training import main

    main()
