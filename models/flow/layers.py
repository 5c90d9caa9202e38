"""The layers that flows are made of: nflows transforms, and our own where nflows falls short."""

import math
from typing import Any

import torch
from nflows import transforms
from torch import Tensor, nn


class Logit(transforms.Transform):  # type: ignore[misc]
    """Spread [0, 1] over the real line: y = logit(alpha + (1 - 2 alpha) x).

    Without it the inverse of affine couplings explodes outside the data's range; with it samples stay in
    [-alpha / (1 - 2 alpha), (1 - alpha) / (1 - 2 alpha)].

    Args:
        alpha: distance kept from both ends, in (0, 0.5).

    Reference:
        Dinh et al., Density estimation using Real NVP, 2017, section 4.1. arXiv:1605.08803
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x in [0, 1], (B, ...), to y and the log-determinant, (B,)."""
        p = self.alpha + (1 - 2 * self.alpha) * inputs
        log_p, log_q = torch.log(p), torch.log1p(-p)
        # dy/dx = (1 - 2 alpha) / (p (1 - p))
        slope = math.log(1 - 2 * self.alpha) - log_p - log_q
        return log_p - log_q, slope.flatten(1).sum(dim=1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map y, (B, ...), back to x and the log-determinant, (B,)."""
        outputs = (torch.sigmoid(inputs) - self.alpha) / (1 - 2 * self.alpha)
        # dx/dy = sigmoid(y) sigmoid(-y) / (1 - 2 alpha)
        slope = nn.functional.logsigmoid(inputs) + nn.functional.logsigmoid(-inputs) - math.log(1 - 2 * self.alpha)
        return outputs, slope.flatten(1).sum(dim=1)


class ActNorm(transforms.ActNorm):  # type: ignore[misc]
    """Activation normalisation that is set from data on request only (see ``initialise``).

    nflows' own takes the first batch it sees in training mode, puts a CPU tensor into a CUDA buffer, and turns a
    constant channel into infinities.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and shift each channel of (B, C) or (B, C, H, W)."""
        scale, shift = self._broadcastable_scale_shift(inputs)
        area = math.prod(inputs.shape[2:])  # log |det| = H W sum over channels of log s
        return inputs * scale + shift, (area * self.log_scale.sum()).expand(len(inputs))


class InvertibleConvolution(transforms.OneByOneConvolution):  # type: ignore[misc]
    """nflows' 1 x 1 convolution (permutation, then an LU product) as one convolution, in full precision.

    nflows' own inverse calls ``torch.triangular_solve``, which PyTorch is about to remove.

    Reference:
        Kingma and Dhariwal, Glow, 2018, section 3.2. arXiv:1807.03039
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        for name in ("lower_indices", "upper_indices", "diag_indices"):  # on the device, not copied there each time
            indices = torch.stack([torch.from_numpy(axis) for axis in self.__dict__.pop(name)])
            self.register_buffer(name, indices, persistent=False)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix the channels of (B, C, H, W)."""
        with torch.autocast(inputs.device.type, enabled=False):
            # permuting the inputs is permuting the columns of the weight; log |det| = H W log |det W|
            weight = self.weight()[:, self.permutation._inverse_permutation]
            outputs = nn.functional.conv2d(inputs, weight[..., None, None], self.bias)
            return outputs, (inputs[0, 0].numel() * self.logabsdet()).expand(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unmix the channels of (B, C, H, W)."""
        batch, channels, height, width = inputs.shape
        with torch.autocast(inputs.device.type, enabled=False):
            lower, upper = self._create_lower_upper()
            rows = (inputs.transpose(0, 1).reshape(channels, -1) - self.bias[:, None]).contiguous()
            # W = L U, so W^-1 is two triangular solves
            rows = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
            rows = torch.linalg.solve_triangular(upper, rows, upper=True)
            outputs = rows.view(channels, batch, height, width).transpose(0, 1)
            outputs, _ = self.permutation.inverse(outputs)
            return outputs, (-height * width * self.logabsdet()).expand(batch)


class Squeeze(transforms.Transform):  # type: ignore[misc]
    """Trade space for channels: (B, C, H, W) to (B, C f^2, H / f, W / f).

    nflows' own inverse takes numbers of channels that 4 divides only.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fold blocks of f x f pixels into channels."""
        return nn.functional.pixel_unshuffle(inputs, self.factor), inputs.new_zeros(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unfold channels into blocks of f x f pixels."""
        return nn.functional.pixel_shuffle(inputs, self.factor), inputs.new_zeros(len(inputs))


class _Halves:
    """A coupling that transforms the first channels, given the last ones; mixed in before nflows' coupling.

    nflows gathers and scatters the channels one by one into an empty tensor: slower, and torch.compile (PyTorch
    2.13, CPU) makes wrong gradients of it.
    """

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform the first channels of (B, C, H, W); the last ones pass through."""
        changing, given = inputs.split([self.num_transform_features, self.num_identity_features], dim=1)
        changed, logabsdet = self._coupling_transform_forward(changing, self.transform_net(given, context))
        return torch.cat([changed, given], dim=1), logabsdet

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        changed, given = inputs.split([self.num_transform_features, self.num_identity_features], dim=1)
        changing, logabsdet = self._coupling_transform_inverse(changed, self.transform_net(given, context))
        return torch.cat([changing, given], dim=1), logabsdet


class AffineCoupling(_Halves, transforms.AffineCouplingTransform):  # type: ignore[misc]
    """nflows' affine coupling, y = sigmoid(s + 2) x + t."""


class AdditiveCoupling(_Halves, transforms.AdditiveCouplingTransform):  # type: ignore[misc]
    """nflows' additive coupling, y = x + t."""


class BoundedCoupling(AffineCoupling):
    """Affine coupling, y = exp(tanh s) x + t: by a factor of e at most, so that the inverse cannot explode.

    nflows' own factor, a sigmoid, may shrink a thousandfold: far latents then decode to values of 1e20.

    Reference:
        Dinh et al., Density estimation using Real NVP, 2017, section 4.1 (the scale's tanh). arXiv:1605.08803
    """

    def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = transform_params.split(self.num_transform_features, dim=1)
        return torch.exp(torch.tanh(raw)), shift


class CouplingNet(nn.Module):
    """The small network of a coupling layer: (B, C, H, W) to (B, C', H, W), zero at first.

    Args:
        width: hidden channels.
        kernel: of the first and last convolution: 3, or 1 where the image is a single pixel.
    """

    def __init__(self, channels_in: int, channels_out: int, width: int, kernel: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, channels_out, kernel, padding=kernel // 2)
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, width, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            last,
        )
        for parameter in last.parameters():  # every coupling begins as a fixed map (Glow, section 3.3)
            nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the raw parameters of the coupling, in the precision of the inputs even under autocast."""
        outputs: Tensor = self.layers(inputs)
        return outputs.to(inputs.dtype)
