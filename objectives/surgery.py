"""Combines the forget and the retain gradient, parameter by parameter."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from unlearn.core.validation import NonNegativeFloat, PositiveFloat, Range, UnitInterval, above, at_most, check_ranges

Gradient = Sequence[Tensor]
"""A tensor per parameter."""

State = dict[str, Any]
"""What a method keeps from step to step; it is in the checkpoint."""

_CHUNK = 1 << 20  # elements turned to float64 at a time
_NEGLIGIBLE = 1e-6  # length relative to the other gradient below which one is rounding and has no direction
_DEPENDENT = 1e-5  # share of a sample's gradient below which the remainder is rounding in single precision


@dataclass(frozen=True)
class Combination(ABC):
    """Turns two gradients, already reduced over ranks, into one.

    Projections are global: inner products run over all trained parameters at once. They hold for the gradient;
    an adaptive optimizer rescales it afterwards, so that its step need not be orthogonal.
    """

    separate: ClassVar[bool] = True
    """Whether the two gradients are needed separately (one extra copy of the trained parameters).

    A rule that does not need them separately is the plain sum: gradients are added as they come, without calling it."""

    per_sample: ClassVar[bool] = False
    """Whether the gradient per retain sample is needed too (one extra copy per sample)."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @abstractmethod
    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with the combined gradient; ``forget`` may be overwritten too.

        Args:
            forget: gradient of the forget loss, a tensor per parameter.
            retain: gradient of the retain loss, same shapes.
            state: empty at first.
            samples: gradient of each retain sample alone, for a combination that is ``per_sample``.
        """


@dataclass(frozen=True)
class WeightedSum(Combination):
    """Add the gradients; the terms' weights are their coefficients. One backward, no extra copy."""

    separate: ClassVar[bool] = False

    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with g_f + g_r."""
        _add(forget, retain, 1.0, 1.0)


@dataclass(frozen=True)
class PCGrad(Combination):
    """Where the gradients conflict, project each off the other, then add.

    Reference:
        Yu et al., Gradient Surgery for Multi-Task Learning, 2020, algorithm 1 (the sum, as in the paper; the
        released code averages). arXiv:2001.06782
    """

    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with PCGrad's sum."""
        dot, square_f, square_r = gram(forget, retain)
        conflict = _conflict(dot, square_f, square_r)
        # (g_f - <f,r>/|r|^2 g_r) + (g_r - <f,r>/|f|^2 g_f), sorted by gradient: neither projection needs a copy
        _add(forget, retain, 1 - _divide(conflict, square_f), 1 - _divide(conflict, square_r))


@dataclass(frozen=True)
class OneSided(Combination):
    """Where the gradients conflict, project the forget gradient off the retain gradient, then add.

    The retain gradient is never changed: to first order the forget step cannot raise the retain loss.

    Reference:
        the projection of Chaudhry et al., Efficient Lifelong Learning with A-GEM, 2019, eq. 11. arXiv:1812.00420
    """

    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with proj(g_f) + g_r."""
        dot, square_f, square_r = gram(forget, retain)
        # g_f - <f,r>/|r|^2 g_r, plus the whole of g_r
        _add(forget, retain, 1.0, 1 - _divide(_conflict(dot, square_f, square_r), square_r))


@dataclass(frozen=True)
class GRU(Combination):
    """Project the forget gradient off a moving average of the retain gradient where they conflict.

    The average starts at the first retain gradient (the released code starts it at zero). As in the paper the
    update holds no retain gradient; ``add_retain`` adds it.

    Args:
        gamma: weight of the new retain gradient in the average, in (0, 1].
        add_retain: add the retain gradient to the update.

    Reference:
        Wang et al., GRU: Mitigating the Trade-off between Unlearning and Retention for LLMs, 2025. arXiv:2503.09117
    """

    gamma: Annotated[float, Range(above, 0), Range(at_most, 1)] = 0.8
    add_retain: bool = False

    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with proj(g_f), plus g_r where asked for."""
        average = state.get("average")
        if average is None:
            average = state["average"] = [gradient.clone() for gradient in retain]
        else:
            for old, new in zip(average, retain, strict=True):
                old.lerp_(new, self.gamma)  # (1 - gamma) old + gamma new, in place
        # the average takes the retain gradient's place in the projection: one batch's gradient is too noisy
        dot, square_f, square = gram(forget, average)
        coefficient = -_divide(_conflict(dot, square_f, square), square)
        for f, r, a in zip(forget, retain, average, strict=True):
            r.mul_(float(self.add_retain)).add_(f).addcmul_(a, coefficient.to(a.dtype))


@dataclass(frozen=True)
class MGDA(Combination):
    """The convex combination of smallest norm: a direction that raises neither loss, to first order.

    Reference:
        Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, 2018, eq. 6. arXiv:1810.04650
    """

    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with w g_f + (1 - w) g_r, w = clip((g_r - g_f).g_r / |g_f - g_r|^2, 0, 1)."""
        dot, square_f, square_r = gram(forget, retain)
        # the minimum over w of |w g_f + (1 - w) g_r|^2, a parabola in w; outside [0, 1] an end is the nearest
        weight = _divide(square_r - dot, square_f + square_r - 2 * dot).clamp(0, 1)
        _add(forget, retain, weight, 1 - weight)


@dataclass(frozen=True)
class OrthoGrad(Combination):
    """Remove from the forget gradient its part in the span of the retain samples' gradients, then average.

    With g_f the gradient of the forget loss (to be lowered, as all losses here), the update descends along
    alpha g_r + (1 - alpha) g_f', g_f' = g_f - Q Q^T g_f, Q an orthonormal basis of the samples' gradients: to first
    order the forget part changes the loss of no retain sample. Samples that depend on others (within rounding) add no
    direction. The paper writes g_u for the gradient of the loss to be raised, hence minus there.

    Args:
        alpha: weight of the retain gradient, in [0, 1]; 0 leaves the projection alone.

    Reference:
        Shamsian et al., Go Beyond Your Means: Unlearning with Per-Sample Gradient Orthogonalization, 2025.
        arXiv:2503.02312. The basis is built by modified Gram-Schmidt, twice over, rather than by QR of one long matrix.
    """

    alpha: UnitInterval = 0.5

    per_sample: ClassVar[bool] = True

    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with alpha g_r + (1 - alpha) g_f'; ``samples``, of any scale, are overwritten too."""
        if not samples:
            raise ValueError("orthograd needs the gradient of every retain sample")
        basis: list[tuple[Sequence[Tensor], Tensor]] = []
        for sample in samples:
            before = gram(sample, sample)[1]
            # each direction is kept unnormalised with its squared norm: samples may be tiny, and no copy is made
            _remove(sample, basis)
            _remove(sample, basis)  # once is not enough where gradients are nearly parallel (Giraud et al. 2005)
            after = gram(sample, sample)[1]
            if after > (_DEPENDENT**2) * before:
                basis.append((sample, after))
        _remove(forget, basis)
        _remove(forget, basis)
        _add(forget, retain, 1 - self.alpha, self.alpha)


@dataclass(frozen=True)
class DoCoReleased(Combination):
    """The rule of DoCo's released code, which is not a projection; the paper's is ``one_sided``.

    Tensor by tensor, where the cosine c of the two gradients f and r is negative, f - strength c r / |r|
    replaces f. c is of unit vectors and f is not one, so that strength 1 removes too little if |f| > 1, and too much
    if |f| < 1. The retain gradient r is then dropped: it only sets the direction in which f may not go. ``one_sided``
    takes inner products over all tensors at once, removes <f, r> r / |r|^2, and adds r. The code treats the tensors of
    cross-attention only, and leaves f as it is elsewhere; here every trained tensor is treated, so the two agree with a
    scope of cross-attention.

    Args:
        strength: lambda of the released code, >= 0.
        clip: largest norm of f before, over all tensors, as released; null for none.

    Reference:
        the released code of Wu et al., 2025. arXiv:2405.15304
    """

    strength: NonNegativeFloat = 1.0
    clip: PositiveFloat | None = 1.0

    def __call__(self, forget: Gradient, retain: Gradient, state: State, samples: Sequence[Gradient] = ()) -> None:
        """Overwrite ``retain`` with the released code's gradient."""
        scale = torch.ones((), dtype=torch.float64, device=forget[0].device)
        if self.clip is not None:
            scale = (self.clip / (gram(forget, forget)[1].sqrt() + 1e-6)).clamp(max=1)
        for f, r in zip(forget, retain, strict=True):
            dot, square_f, square_r = gram([f], [r])
            # c r / |r| as released: a projection would have |f| c r / |r|
            taken = self.strength * cosine_of(dot, square_f, square_r).clamp(max=0)
            _add([f], [r], scale, -_divide(taken, square_r.sqrt()))


def _remove(vector: Sequence[Tensor], basis: Sequence[tuple[Sequence[Tensor], Tensor]]) -> None:
    """Remove from a vector its part along each direction (given with its squared norm), one by one, in place."""
    for direction, square in basis:
        share = gram(vector, direction)[0] / square
        for v, d in zip(vector, direction, strict=True):
            v.sub_(d * share.to(d.dtype))


def gram(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return <first, second>, |first|^2 and |second|^2 over all tensors, as float64 scalars."""
    total = torch.zeros(3, dtype=torch.float64, device=first[0].device)
    for a, b in _chunks(first, second):
        total += torch.stack((a @ b, a @ a, b @ b))
    dot, square_first, square_second = total.unbind()
    return dot, square_first, square_second


def cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the cosine between two gradients; 0 where one of them is zero."""
    return cosine_of(*gram(first, second))


def cosine_of(dot: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of two vectors from <first, second>, |first|^2 and |second|^2; 0 where one is zero."""
    return _divide(dot, (first * second).sqrt())


def _conflict(dot: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return <first, second> if it is negative and neither is rounding relative to the other, else 0.

    A retain loss that compares with the target has no gradient before the first step, up to rounding.
    """
    # squared norms, hence the squared threshold
    rounding = torch.minimum(first, second) < _NEGLIGIBLE**2 * torch.maximum(first, second)
    return torch.where(rounding, 0.0, dot.clamp(max=0))


def _chunks(first: Sequence[Tensor], second: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for a, b in zip(first, second, strict=True):
        for part_a, part_b in zip(a.reshape(-1).split(_CHUNK), b.reshape(-1).split(_CHUNK), strict=True):
            yield part_a.double(), part_b.double()  # a sum over billions of single-precision products drifts


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; 0 where the denominator is 0 (a zero gradient conflicts with nothing)."""
    return torch.where(denominator > 0, numerator / denominator.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def _add(forget: Sequence[Tensor], retain: Sequence[Tensor], a: Tensor | float, b: Tensor | float) -> None:
    """Overwrite ``retain`` with a * forget + b * retain; the factors stay on the device."""
    for f, r in zip(forget, retain, strict=True):
        r.mul_(b if isinstance(b, float) else b.to(r.dtype))
        r.add_(f.mul_(a if isinstance(a, float) else a.to(f.dtype)))
