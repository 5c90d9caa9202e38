"""Embedders of images, with gradient: identity, perceptual distance, and attributes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.models.feature_extractors.base import Detector, Network
from unlearn.models.feature_extractors.classifiers import PACKAGED
from unlearn.models.feature_extractors.face_nets import DlibFace, MobileFace
from unlearn.models.feature_extractors.networks import (
    FACE_NETS,
    Stages,
    accepted_shape,
    find_network,
    is_face,
    small_net,
)
from unlearn.models.feature_extractors.torchscript import BLANK, answer, misfit, on_device_of


@dataclass(frozen=True)
class Embedder(Detector):
    """Embeds who or what an image shows in D values.

    Attributes:
        network: a ``Network``, or a TorchScript module that maps images (B, C, H, W) in [-1, 1] to (B, D).
        metric: ``l2``: Euclidean distance; ``cosine``: 1 - cos.
    """

    network: Network | torch.jit.ScriptModule
    metric: Literal["l2", "cosine"]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the embeddings, (B, D), of images (B, C, H, W) in [-1, 1], with gradient.

        The net is moved to the device of the images, and computes in single precision.
        """
        network = on_device_of(self.network, images)
        if isinstance(network, torch.jit.ScriptModule):
            found: Tensor = network(images.float())
            return found
        return network.embed(network.layers(images.float()))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, (B,), between embeddings (B, D); the gradient is 0 where they are equal."""
        if self.metric == "l2":
            found: Tensor = (a - b).norm(dim=1)
            return found
        return 1 - F.cosine_similarity(a, b, dim=1)


@dataclass(frozen=True)
class Perceptual(Detector):
    """Perceptual distance of two images in the features of a frozen net.

    LPIPS with all its weights 1 and the mean over layers in place of their sum: every position's features are brought
    to unit length over the channels; the distance is the squared difference, summed over channels and averaged over
    positions and layers. 0 ... 4, for features >= 0 at most 2. Its name is that of the net, as this is not LPIPS.

    Attributes:
        network: a ``Network``, or a TorchScript module that maps two batches of images in [-1, 1] to B distances.

    Reference:
        Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018, eq. 1.
        arXiv:1801.03924
    """

    network: Network | torch.jit.ScriptModule

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, (B,), between images (B, C, H, W) in [-1, 1], with gradient."""
        return self.between(self.features(a), self.features(b))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return what ``between`` compares, with gradient: (B, D, h, w) of unit length over D, one per layer."""
        network = on_device_of(self.network, images)
        if isinstance(network, torch.jit.ScriptModule):
            return [images.float()]
        return self.of_layers(network.layers(images.float()))

    def of_layers(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Return what ``between`` compares, of features that ``network.layers`` gave."""
        return [F.normalize(layer, dim=1, eps=1e-10) for layer in layers]  # unit length, with LPIPS's epsilon

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
            whose embeddings are compared by 1 - cos.
        shape: (C, H, W).

    Raises:
        RecipeError: there is no such net, or it does not take such images.
    """
    found, sha256, network = find_network(name, tuple(shape), "identity")
    if isinstance(network, torch.jit.ScriptModule):
        given = answer(network, tuple(shape), f"identity net {name}")
        if len(given) != 2 or given[0] != BLANK:
            raise misfit(f"identity net {name}", shape, given, f"one row per image, ({BLANK}, D)")
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
    found, sha256, network = find_network(name, tuple(shape), "perceptual")
    if not isinstance(network, torch.jit.ScriptModule):
        return Perceptual(f"perceptual_{found}", sha256, network)
    given = answer(network, tuple(shape), f"perceptual net {name}", 2)
    if math.prod(given) != BLANK:
        raise misfit(f"perceptual net {name}", shape, given, f"one distance per pair, ({BLANK},)")
    return Perceptual(found, sha256, network)


@dataclass(frozen=True)
class Attributes(Detector):
    """Predicts what an image shows, as probabilities.

    Attributes:
        labels: of its K outputs.
        network: maps images (B, C, H, W) in [-1, 1] to probabilities (B, K).
        numbered: whether the labels are only numbers, of a net without names.
        frame: width in pixels of a border around the images that is cropped first.
    """

    labels: tuple[str, ...]
    network: Callable[[Tensor], Tensor]
    numbered: bool = False
    frame: int = 0

    @override
    @property
    def detector(self) -> dict[str, str]:
        return {**super().detector, "labels": ", ".join(self.labels)}

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
        frame: width in pixels of a border around the images.

    Raises:
        RecipeError: there is no such net, or it does not take such images.
    """
    whole = tuple(shape)
    inside = (*whole[:1], *(side - 2 * frame for side in whole[1:]))
    packaged: dict[tuple[int, ...], str] = {takes: net for net, takes in PACKAGED.items()}
    name = name or packaged.get(whole) or packaged.get(inside) or ("mobile_face" if is_face(whole) else None)
    if name is None or name in FACE_NETS or name.endswith(".pt") or accepted_shape(name, "attribute") != inside:
        frame = 0
    found, sha256, network = find_network(name, inside if frame else whole, "attribute")
    if isinstance(network, MobileFace):
        return Attributes(found, sha256, ("looks_male", "looks_over_40"), partial(_of_face, network))
    if isinstance(network, Stages):
        net, _ = small_net(name or found)
        return Attributes(found, sha256, net.labels, partial(_of_groups, network, net.sizes), frame=frame)
    if isinstance(network, torch.jit.ScriptModule):
        given = answer(network, tuple(shape), f"attribute net {name}")
        if len(given) > 2 or given[:1] != (BLANK,):
            raise misfit(f"attribute net {name}", shape, given, f"logits ({BLANK}, K), or ({BLANK},) of one label")
        labels = tuple(str(number) for number in range(math.prod(given[1:])))
        return Attributes(found, sha256, labels, partial(_of_script, network), numbered=True)
    raise RecipeError(f"{name} names nothing; it only tells faces apart. Type mobile_face.")


def _of_face(network: MobileFace, images: Tensor) -> Tensor:
    found = on_device_of(network, images)
    embeddings = found.embed(found.layers(images))
    return torch.stack([found.male(embeddings), found.ages(embeddings)[:, 40:].sum(dim=1)], dim=1)  # from 41 years


def _of_groups(network: Stages, sizes: Sequence[int], images: Tensor) -> Tensor:
    found = on_device_of(network, images)
    logits = found.net.head(found.embed(found.layers(images)))
    return torch.cat([part.softmax(dim=1) for part in logits.split(sizes, dim=1)], dim=1)


def _of_script(network: torch.jit.ScriptModule, images: Tensor) -> Tensor:
    logits: Tensor = on_device_of(network, images)(images)
    logits = logits.reshape(len(images), -1)
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
