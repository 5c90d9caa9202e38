"""Networks that embed faces, in PyTorch, for weights that were published for other libraries."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from unlearn.models.feature_extractors.base import Network, in_colour


def convolution(weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    """Return a convolution with frozen weights (D, C / groups, k, k) and biases (D,)."""
    outputs, inputs, size, _ = weight.shape
    found = nn.Conv2d(inputs * groups, outputs, size, stride, padding, groups=groups, device="meta")  # draws no weights
    found.weight, found.bias = (nn.Parameter(each.contiguous(), requires_grad=False) for each in (weight, bias))
    return found


class DlibFace(Network):
    """dlib's face embedder: a residual net of 29 convolutions, 128 values per face.

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
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298]).to(weights["fc"])[:, None, None])
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
        x = (resized(images, self.side) + 1) * 127.5  # grey levels 0 ... 255, as in training
        x = F.relu(self.stem((x - self.mean) / 255))
        found = [x]
        x = F.max_pool2d(x, 3, 2)
        for stage in self.blocks:
            for name in stage:
                x = self._block(x, name)
            found.append(x)
        return found

    @override
    def embed(self, layers: list[Tensor]) -> Tensor:
        return layers[-1].mean((2, 3)) @ self.head

    def _block(self, x: Tensor, name: str) -> Tensor:
        y = self.second[name](F.relu(self.first[name](x)))
        if "down" in name:  # the shortcut is pooled and gets empty channels; the other path empty edges
            x = F.avg_pool2d(x, 2)
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return F.relu(y + x)


class MobileFace(Network):
    """A MobileNet that was trained to recognise faces, 1,024 values per face, with heads for gender and age.

    The heads were trained on top of the frozen recogniser. Embeddings of one person point in nearly the same direction;
    their distance is 1 - cos.

    Args:
        weights: by the names of the published graph, filters (k, k, C, D), batch normalisation folded in.

    Attributes:
        side: of the images it takes, in pixels.

    Reference:
        Savchenko, Efficient facial representations for age, gender and identity recognition in organizing photo albums
        using multi-output ConvNet, 2019. PeerJ Computer Science 5:e197; github.com/av-savchenko/HSE_FaceRec_tf.
        Howard et al., MobileNets, 2017. arXiv:1704.04861
    """

    side = 224
    strided = (2, 4, 6, 12)
    """Blocks that halve the sides."""
    mean: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        filters = weights["conv1/convolution/merged_input"].permute(3, 2, 0, 1)
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]).to(filters)[:, None, None])
        self.stem = convolution(filters, weights["conv1_bn/batchnorm_1/sub"], 2)
        self.depthwise, self.pointwise = nn.ModuleList(), nn.ModuleList()
        for block in range(1, 14):
            scale, shift = (weights[f"conv_dw_{block}_bn/batchnorm_1/{part}"] for part in ("mul", "sub"))
            filters = weights[f"conv_dw_{block}/depthwise_kernel"].permute(2, 3, 0, 1) * scale[:, None, None, None]
            stride = 2 if block in self.strided else 1
            self.depthwise.append(convolution(filters, shift, stride, groups=len(filters)))
            filters = weights[f"conv_pw_{block}/convolution/merged_input"].permute(3, 2, 0, 1)
            self.pointwise.append(convolution(filters, weights[f"conv_pw_{block}_bn/batchnorm_1/sub"]))
        for head in ("feats", "gender_pred", "age_pred"):
            for part in ("kernel", "bias"):
                self.register_buffer(f"{head}_{part}", weights[f"{head}/{part}"])
        self.eval()

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the features of each size of image, before it is halved, of images (B, 3, H, W) in [-1, 1]."""
        x = (resized(images, self.side) + 1) * 127.5  # grey levels 0 ... 255, as in training
        x = F.relu6(self.stem(F.pad(x.flip(1) - self.mean, (0, 1, 0, 1))))  # blue, green, red
        found = []
        for block, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True), start=1):
            if block in self.strided:
                found.append(x)
            x = F.pad(x, (0, 1, 0, 1) if block in self.strided else (1, 1, 1, 1))
            x = F.relu6(pointwise(F.relu6(depthwise(x))))
        return [*found, x]

    @override
    def embed(self, layers: list[Tensor]) -> Tensor:
        return layers[-1].mean((2, 3))

    def male(self, embeddings: Tensor) -> Tensor:
        """Return the probability, (B,), that faces with these embeddings look like men's to the net."""
        return self._head("gender_pred", embeddings).sigmoid()[:, 0]

    def ages(self, embeddings: Tensor) -> Tensor:
        """Return the probabilities, (B, 100), that the net gives to ages of 1 ... 100 years."""
        return self._head("age_pred", embeddings).softmax(dim=1)

    def _head(self, name: str, embeddings: Tensor) -> Tensor:
        x = F.relu(embeddings @ self.get_buffer("feats_kernel") + self.get_buffer("feats_bias"))
        return x @ self.get_buffer(f"{name}_kernel") + self.get_buffer(f"{name}_bias")


def _scaled(weights: Mapping[str, Tensor], name: str, stride: int, padding: int) -> nn.Conv2d:
    """Return a convolution and the scale behind it as one: s (w x + b) + t."""
    scale, shift = weights[f"{name}/scale/weights"], weights[f"{name}/scale/biases"]
    filters = weights[f"{name}/conv/filters"].permute(3, 2, 0, 1) * scale[:, None, None, None]
    return convolution(filters, weights[f"{name}/conv/bias"] * scale + shift, stride, padding)


def resized(images: Tensor, side: int) -> Tensor:
    """Return images (B, C, H, W) as colour images of side x side pixels, bilinear, averaged where they shrink."""
    colour = in_colour(images)
    if colour.shape[-2:] == (side, side):
        return colour
    shrinks = max(colour.shape[-2:]) > side
    return F.interpolate(colour, (side, side), mode="bilinear", align_corners=False, antialias=shrinks)
