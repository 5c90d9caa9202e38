"""The rule of DoCo's released code: what it computes, and where it differs from the projection of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unlearn.objectives.surgery import DoCoReleased, OneSided

SHAPES = ((7, 5), (11,), (3, 2, 4))


def pair(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients that conflict in the first and the last tensor, and agree in the second."""
    generator = torch.Generator().manual_seed(seed)
    retain = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    forget = [3 * (n + sign * r) for n, r, sign in zip(noise, retain, (-1.0, 1.0, -2.0), strict=True)]
    return [f.to(dtype) for f in forget], [r.to(dtype) for r in retain]


def combined(method: DoCoReleased | OneSided, forget: list[Tensor], retain: list[Tensor]) -> list[Tensor]:
    found = [r.clone() for r in retain]
    method([f.clone() for f in forget], found, {})
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("strength", "clip"), [(1.0, 1.0), (0.5, None), (2.0, 0.3), (0.0, 1.0)])
def test_each_tensor_loses_the_cosine_times_the_unit_retain_gradient(
    strength: float, clip: float | None, dtype: torch.dtype
) -> None:
    forget, retain = pair(dtype=dtype)
    size = torch.cat([f.double().reshape(-1) for f in forget]).norm()
    scale = 1.0 if clip is None else min(1.0, clip / float(size))
    for found, f, r in zip(combined(DoCoReleased(strength, clip), forget, retain), forget, retain, strict=True):
        f, r = scale * f.double(), r.double()
        cosine = float((f * r).sum() / (f.norm() * r.norm()))
        wanted = f - strength * min(0.0, cosine) * r / r.norm()
        assert torch.allclose(found.double(), wanted, atol=1e-5 if dtype == torch.float32 else 1e-6)


def test_it_is_the_projection_only_for_one_tensor_of_norm_one() -> None:
    """With |f| = 1 the released rule takes <f, r> r / |r|^2 away, as the projection does; then r itself is missing."""
    (f, *_), (r, *_) = pair()
    unit = f / f.norm()
    rule = DoCoReleased(clip=None)
    (released,), (projected,) = combined(rule, [unit], [r]), combined(OneSided(), [unit], [r])
    assert torch.allclose(released + r, projected, atol=1e-9)
    assert abs(float((released * r).sum())) < 1e-9
    for size in (0.1, 10.0):
        (released,) = combined(rule, [size * unit], [r])
        left = float((released * r).sum() / r.norm())
        cosine = float((unit * r).sum() / r.norm())
        assert left == pytest.approx((size - 1) * cosine)  # beyond orthogonal below 1, still in conflict above
        assert (left < 0) == (size > 1)


def test_it_drops_the_retain_gradient() -> None:
    """Where nothing conflicts the forget gradient is all there is; the paper's projection adds the retain gradient."""
    forget, retain = pair()
    agreeing = [-f if float((f * r).sum()) < 0 else f for f, r in zip(forget, retain, strict=True)]
    released = combined(DoCoReleased(clip=None), agreeing, retain)
    assert all(torch.equal(found, f) for found, f in zip(released, agreeing, strict=True))
    added = combined(OneSided(), agreeing, retain)
    assert all(torch.allclose(found, f + r) for found, f, r in zip(added, agreeing, retain, strict=True))


def test_zero_gradients_conflict_with_nothing() -> None:
    forget, retain = pair()
    nothing = [torch.zeros_like(f) for f in forget]
    assert all(not found.any() for found in combined(DoCoReleased(), nothing, retain))
    kept = combined(DoCoReleased(clip=None), forget, nothing)
    assert all(torch.equal(found, f) for found, f in zip(kept, forget, strict=True))


@pytest.mark.parametrize("settings", [{"strength": -1.0}, {"clip": 0.0}])
def test_values_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DoCoReleased(**settings)
