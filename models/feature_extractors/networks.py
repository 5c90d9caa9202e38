"""The frozen networks behind embedders, by name: packaged face networks, small classifiers, TorchScript files."""

import hashlib
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from os.path import expanduser
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.models.feature_extractors.base import Network
from unlearn.models.feature_extractors.classifiers import ASSETS, PACKAGED, Features, SmallNet, load_features
from unlearn.models.feature_extractors.face_nets import DlibFace, MobileFace
from unlearn.models.feature_extractors.torchscript import metric_name, on_device_of, scripted


class Stages(Network):
    """A small classifier as a ``Network``: the features before each pooling, and the last D.

    Args:
        net: a feature net.
    """

    def __init__(self, net: SmallNet) -> None:
        super().__init__()
        self.net = net
        self.pools = [index for index, layer in enumerate(net.body) if isinstance(layer, nn.MaxPool2d)]

    @override
    def layers(self, images: Tensor) -> list[Tensor]:
        found, x = [], images
        for start, end in pairwise([0, *self.pools]):
            x = self.net.body[start:end](x)
            found.append(x)
        return found

    def embed(self, layers: list[Tensor]) -> Tensor:
        """Return the last D features, (B, D) >= 0."""
        return F.relu(self.net.body[self.pools[-1] :](layers[-1]))  # from the last pooling on


def described(network: Network, images: Tensor) -> Tensor:
    """Return what a network sees in images (B, C, H, W) in [-1, 1]: all its layers, as one vector each, (B, D).

    They are the mean and deviation of each channel of its layers, and the embedding, which alone maps noise among the
    images that the network knows.
    """
    layers = on_device_of(network, images).layers(images.float())
    maps = [layer.flatten(2) for layer in layers if layer.dim() > 2]
    moments = [moment for one in maps for moment in (one.mean(dim=2), one.std(dim=2, correction=0))]
    return torch.cat([*moments, network.embed(layers)], dim=1)


def find_network(
    name: str | None, shape: tuple[int, ...], what: str
) -> tuple[str, str, Network | torch.jit.ScriptModule]:
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
        return metric_name(name), *scripted(name, f"{what} net")
    takes = accepted_shape(name, what)
    net, network = small_net(name)
    if takes != shape:
        raise RecipeError(f"The {what} net {name} takes images of shape {takes}; these have {shape}. {_packaged()}")
    return Path(name).name, net.sha256, network


def accepted_shape(name: str, what: str) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the images that a small net takes."""
    if name not in PACKAGED and not Path(expanduser(name)).is_dir():
        raise RecipeError(
            f"There is no {what} net {name!r}: it is no packaged net, no folder of one and no TorchScript file "
            f"(FILE.pt). {did_you_mean(name, [*FACE_NETS, *PACKAGED])}"
        )
    return small_net(name)[0].shape


LEAST = 32
"""Smallest side of a face in pixels."""

FACE_NETS: dict[str, Callable[[dict[str, Tensor]], Network]] = {"dlib_face": DlibFace, "mobile_face": MobileFace}
"""Packaged nets of faces, and their constructors from weights."""


def is_face(shape: tuple[int, ...]) -> bool:
    """Return whether nets of faces take images of a shape."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= LEAST


def _packaged() -> str:
    small = ", ".join(f"{name} {shape}" for name, shape in PACKAGED.items())
    return f"Packaged: {', '.join(FACE_NETS)} (faces of {LEAST} pixels or more), {small}."


@cache
def _face_net(name: str) -> tuple[str, Network]:
    content = hashlib.sha256()
    for file in sorted((ASSETS / name).glob("weights_*.safetensors")):
        content.update(file.read_bytes())
    return content.hexdigest(), FACE_NETS[name](stored_values(ASSETS / name))


def stored_values(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a folder's ``weights_*.safetensors`` by name, float32.

    ``unlearn.experiment.convert_tensorflow_js`` writes them. A weight is scale * code + least, computed in float64 as
    TensorFlow.js does. ``name#range`` holds (scale, least); it is absent where ``name`` holds the values themselves.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("weights_*.safetensors")):
        tensors |= load_file(path)
    found = {}
    for name, codes in tensors.items():
        if f"{name}#range" in tensors:
            scale, least = tensors[f"{name}#range"].tolist()
            found[name] = (codes.double() * scale + least).float()
        elif not name.endswith("#range"):
            found[name] = codes.float()
    return found


@cache
def small_net(name: str) -> tuple[Features, Stages]:
    """Return a small classifier and its stages."""
    found = load_features(name)
    return found, Stages(found.network)
