"""Networks that embed faces, written out in torch for weights that were published for other libraries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Module):
    """A convolution whose weights hold still.

    Args:
        weight: (D, C / groups, k, k).
        bias: (D,).
        stride: of the window.
        padding: on every side.
        groups: of channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D, h, w) of (B, C, H, W)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)


class DlibFace(nn.Module):
    """dlib's face embedder: a residual net of 29 convolutions, 128 values a face.

    Two images of one person lie within about 0.6 of each other (Euclidean), two of different persons further apart,
    for aligned photographs.

    Args:
        weights: by the names of face-api.js, filters (k, k, C, D).

    Attributes:
        side: of the images it takes, in pixels.

    Reference:
        King, dlib_face_recognition_resnet_model_v1, 2017, github.com/davisking/dlib-models; after He et al., Deep
        Residual Learning for Image Recognition, 2016. arXiv:1512.03385
    """

    side = 150
    blocks = (
        ("conv32_1", "conv32_2", "conv32_3"),
        ("conv64_down", "conv64_1", "conv64_2", "conv64_3"),
        ("conv128_down", "conv128_1", "conv128_2"),
        ("conv256_down", "conv256_1", "conv256_2", "conv256_down_out"),
    )
    """Residual blocks by stage."""
    mean: Tensor
    head: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298])[:, None, None])
        self.register_buffer("head", weights["fc"])
        self.stem = _scaled(weights, "conv32_down", stride=2, padding=0)
        self.first, self.second = nn.ModuleDict(), nn.ModuleDict()
        for name in (name for stage in self.blocks for name in stage):
            stride, padding = (2, 0) if "down" in name else (1, 1)
            self.first[name] = _scaled(weights, f"{name}/conv1", stride, padding)
            self.second[name] = _scaled(weights, f"{name}/conv2", 1, 1)
        self.eval()

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the features after the first convolution and after each stage, of images (B, 3, H, W) in [-1, 1]."""
        x = (resized(images, self.side) + 1) * 127.5
        x = F.relu(self.stem((x - self.mean) / 255))
        found = [x]
        x = F.max_pool2d(x, 3, 2)
        for stage in self.blocks:
            for name in stage:
                x = self._block(x, name)
            found.append(x)
        return found

    def embed(self, layers: list[Tensor]) -> Tensor:
        """Return the embedding, (B, 128), that ``layers`` lead to."""
        return layers[-1].mean((2, 3)) @ self.head

    def _block(self, x: Tensor, name: str) -> Tensor:
        y = self.second[name](F.relu(self.first[name](x)))
        if "down" in name:  # the shortcut is pooled and gets empty channels; the other path empty edges
            x = F.avg_pool2d(x, 2)
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return F.relu(y + x)


def _scaled(weights: Mapping[str, Tensor], name: str, stride: int, padding: int) -> Convolution:
    """Return a convolution and the scale behind it as one: s (w x + b) + t."""
    scale, shift = weights[f"{name}/scale/weights"], weights[f"{name}/scale/biases"]
    filters = weights[f"{name}/conv/filters"].permute(3, 2, 0, 1) * scale[:, None, None, None]
    return Convolution(filters, weights[f"{name}/conv/bias"] * scale + shift, stride, padding)


def resized(images: Tensor, side: int) -> Tensor:
    """Return images (B, C, H, W) as colour images of side x side pixels, bilinear, averaged where they shrink."""
    colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    if colour.shape[-2:] == (side, side):
        return colour
    shrinks = max(colour.shape[-2:]) > side
    return F.interpolate(colour, (side, side), mode="bilinear", align_corners=False, antialias=shrinks)
