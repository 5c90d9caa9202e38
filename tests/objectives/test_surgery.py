"""Gradient combinations against their flattened float64 forms and closed cases."""

import pytest
import torch
from torch import Tensor

from unlearn.objectives.surgery import GRU, MGDA, Combination, OneSided, PCGrad, WeightedSum, cosine, gram

SHAPES = ((7, 5), (11,), (3, 2, 4), ())
PROJECTIONS = (PCGrad(), OneSided(), GRU(), MGDA())


def gradients(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1).double() for part in parts])


def conflicting(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """A pair with a cosine of about -0.6, at different scales."""
    retain = gradients(1, dtype)
    forget = [(3 * (g - 1.2 * r)) for g, r in zip(gradients(2, dtype), retain, strict=True)]
    assert cosine(forget, retain) < -0.5
    return forget, retain


def agreeing() -> tuple[list[Tensor], list[Tensor]]:
    forget, retain = conflicting()
    return [-f for f in forget], retain


def combined(method: Combination, forget: list[Tensor], retain: list[Tensor], state: dict | None = None) -> Tensor:
    result = [r.clone() for r in retain]
    method([f.clone() for f in forget], result, {} if state is None else state)
    return flat(result)


def expected(name: str, f: Tensor, r: Tensor, average: Tensor | None = None) -> Tensor:
    """The papers' formulas on flattened float64 vectors."""
    a = r if average is None else average
    if name == "PCGrad":
        f_projected = f - min(0.0, float(f @ r)) / (r @ r) * r
        r_projected = r - min(0.0, float(f @ r)) / (f @ f) * f
        return f_projected + r_projected
    if name == "OneSided":
        return f - min(0.0, float(f @ r)) / (r @ r) * r + r
    if name == "GRU":
        return f - min(0.0, float(f @ a)) / (a @ a) * a
    weight = ((r - f) @ r / ((f - r) @ (f - r))).clamp(0, 1)
    return weight * f + (1 - weight) * r


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", PROJECTIONS, ids=lambda method: type(method).__name__)
def test_streaming_equals_the_flattened_form(method: Combination, dtype: torch.dtype) -> None:
    for forget, retain in (conflicting(dtype), agreeing()):
        right = expected(type(method).__name__, flat(forget), flat(retain))
        found = combined(method, forget, retain)
        assert torch.allclose(found, right, rtol=0, atol=1e-6 * float(right.abs().max()))


def test_gru_follows_its_moving_average() -> None:
    """Second step: the average is .8 g_2 + .2 g_1, started at g_1; a start at zero would give .8 g_2 + .16 g_1."""
    state: dict = {}
    forget, retain = conflicting()
    combined(GRU(gamma=0.8), forget, retain, state)
    second = gradients(9)
    found = combined(GRU(gamma=0.8), [-3 * g for g in second], second, state)
    average = 0.8 * flat(second) + 0.2 * flat(retain)
    assert torch.allclose(flat(state["average"]), average, atol=1e-12)
    assert torch.allclose(found, expected("GRU", -3 * flat(second), flat(second), average), atol=1e-9)
    assert torch.allclose(
        combined(GRU(add_retain=True), forget, retain), expected("GRU", flat(forget), flat(retain)) + flat(retain)
    )


@pytest.mark.parametrize("method", [PCGrad(), OneSided(), WeightedSum()], ids=lambda method: type(method).__name__)
def test_gradients_that_agree_are_only_added(method: Combination) -> None:
    forget, retain = agreeing()
    assert torch.equal(combined(method, forget, retain), flat(forget) + flat(retain))


def test_after_projection_nothing_conflicts() -> None:
    forget, retain = conflicting()
    scale = flat(forget).norm() * flat(retain).norm()
    one_sided = combined(OneSided(), forget, retain) - flat(retain)
    assert abs(one_sided @ flat(retain)) < 1e-12 * scale
    assert abs(combined(GRU(), forget, retain) @ flat(retain)) < 1e-12 * scale
    assert combined(PCGrad(), forget, retain) @ flat(retain) > 0
    assert (flat(forget) + flat(retain)) @ flat(retain) < 0  # the control: a plain sum does harm retain
    shared = combined(MGDA(), forget, retain)
    assert shared @ flat(forget) > 0 and shared @ flat(retain) > 0


@pytest.mark.parametrize("method", PROJECTIONS, ids=lambda method: type(method).__name__)
def test_the_partition_into_parameters_does_not_matter(method: Combination) -> None:
    forget, retain = conflicting()
    whole = combined(method, [flat(forget)], [flat(retain)])
    assert torch.allclose(combined(method, forget, retain), whole, atol=1e-12)


@pytest.mark.parametrize("method", PROJECTIONS, ids=lambda method: type(method).__name__)
def test_zero_gradients_are_harmless(method: Combination) -> None:
    forget, retain = conflicting()
    zeros = [torch.zeros_like(r) for r in retain]
    assert combined(method, forget, zeros).isfinite().all()
    assert combined(method, zeros, retain).isfinite().all()
    assert torch.equal(combined(method, zeros, zeros), flat(zeros))


def test_gram_in_chunks_is_exact() -> None:
    """More than 2**20 elements, so that two chunks are added: sum of i * 1 over i < n is n (n - 1) / 2."""
    n = (1 << 20) + 5
    numbers = torch.arange(n, dtype=torch.float64)
    dot, _, norm = gram([numbers], [torch.ones(n, dtype=torch.float64)])
    assert float(dot) == n * (n - 1) / 2 and float(norm) == n


def test_gamma_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma"):
        GRU(gamma=0.0)
