"""OrthoGrad's streaming projection against QR of the flattened gradients in double precision."""

import pytest
import torch
from torch import Tensor

from tests.objectives.test_surgery import SHAPES, flat, gradients
from unlearn.objectives.surgery import OrthoGrad

COUNT = sum(torch.Size(shape).numel() for shape in SHAPES)


def mean(samples: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts).mean(0) for parts in zip(*samples, strict=True)]


def expected(forget: list[Tensor], samples: list[list[Tensor]], alpha: float) -> Tensor:
    """alpha g_r + (1 - alpha)(g_f - Q Q^T g_f), Q from the singular vectors that count."""
    columns = torch.stack([flat(sample) for sample in samples], dim=1)
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    q = u[:, s > 1e-6 * s[0]]
    g = flat(forget)
    return alpha * flat(mean(samples)) + (1 - alpha) * (g - q @ (q.T @ g))


def combined(forget: list[Tensor], samples: list[list[Tensor]], alpha: float) -> Tensor:
    retain = mean(samples)
    copies = [[part.clone() for part in sample] for sample in samples]
    OrthoGrad(alpha)([f.clone() for f in forget], retain, {}, copies)
    return flat(retain)


def samples_of(count: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    return [gradients(100 + seed, dtype) for seed in range(count)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_streaming_equals_qr(alpha: float, count: int, dtype: torch.dtype) -> None:
    forget, samples = gradients(1, dtype), samples_of(count, dtype)
    right = expected(forget, samples, alpha)
    q, _ = torch.linalg.qr(torch.stack([flat(sample) for sample in samples], dim=1))
    g = flat(forget)
    assert torch.allclose(right, alpha * flat(mean(samples)) + (1 - alpha) * (g - q @ (q.T @ g)), atol=1e-12)
    assert torch.allclose(combined(forget, samples, alpha), right, rtol=0, atol=1e-6 * float(flat(forget).abs().max()))


def test_the_forget_part_changes_no_retain_sample_and_still_forgets() -> None:
    """<g_f', g_i> = 0 for each sample, which the projection off their mean alone (the control) does not reach;
    <g_f', g_f> = |g_f'|^2 >= 0: a descent along it lowers the forget loss."""
    forget, samples = gradients(1), samples_of(8)
    found = combined(forget, samples, 0.0)
    off_mean = combined(forget, [mean(samples)], 0.0)
    for sample in samples:
        assert abs(float(found @ flat(sample))) < 1e-9
        assert abs(float(off_mean @ flat(sample))) > 0.01
    assert float(found @ flat(forget)) == pytest.approx(float(found @ found)) and float(found @ found) > 1


def test_samples_that_depend_on_others_are_left_out() -> None:
    """Twice the same, a sum of two, and a zero gradient: the span is that of two; as many samples as numbers: nothing
    is left of the forget gradient, in single precision too."""
    forget = gradients(1, torch.float32)
    one, two = samples_of(2, torch.float32)
    both = [a + 3 * b for a, b in zip(one, two, strict=True)]
    zero = [torch.zeros_like(a) for a in one]
    right = expected(forget, [one, two], 0.0)
    found = combined(forget, [one, zero, one, two, both, two], 0.0)
    assert torch.allclose(found, right, atol=1e-6)
    everything = combined(forget, samples_of(COUNT + 5, torch.float32), 0.0)
    assert everything.norm() < 1e-4 * flat(forget).norm()


def test_nearly_parallel_samples_keep_their_small_difference() -> None:
    """Two samples 1e-3 apart span a plane: both directions are projected away, though one is short."""
    forget = gradients(1)
    (one, other) = samples_of(2)
    near = [a + 1e-3 * b for a, b in zip(one, other, strict=True)]
    found = combined(forget, [one, near], 0.0)
    assert abs(float(found @ flat(other))) < 1e-9 * float(flat(other).norm())


def test_the_scale_of_samples_and_of_the_partition_does_not_matter() -> None:
    forget, samples = gradients(1), samples_of(4)
    retain = mean(samples)
    scaled = [[part * 10.0**index for part in sample] for index, sample in enumerate(samples)]
    OrthoGrad(0.3)([f.clone() for f in forget], retain, {}, scaled)
    assert torch.allclose(flat(retain), combined(forget, samples, 0.3), atol=1e-9)
    whole = combined([flat(forget)], [[flat(sample)] for sample in samples], 0.3)
    assert torch.allclose(whole, combined(forget, samples, 0.3), atol=1e-9)


def test_without_samples_or_with_alpha_out_of_range_it_refuses() -> None:
    with pytest.raises(ValueError, match="every retain sample"):
        OrthoGrad()(gradients(1), gradients(2), {})
    with pytest.raises(ValueError, match="alpha"):
        OrthoGrad(alpha=1.5)
