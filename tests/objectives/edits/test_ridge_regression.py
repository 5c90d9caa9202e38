"""The ridge regression of edits: against brute-force least squares, its normal equations, and in its limits."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.objectives.edits.ridge_regression import Kept, Ridge, Rows, values

N, M, R, P = 6, 5, 3, 4
"""Inputs' width, outputs' width, requests, kept inputs."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(count: int = R, weights: Tensor | None = None) -> Rows:
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0, 0.7])[:count].double() if weights is None else weights
    return Rows(drawn(count, N, seed=1), drawn(count, N, seed=2), weights, torch.tensor([0, 0, 1, 1, 2, 2])[:count])


def kept(count: int = P, weight: float = 0.3) -> Kept:
    found = Kept.nothing(N)
    found.add(drawn(P, N, seed=3)[:count], weight)
    return found


def brute_force(weight: Tensor, wanted: Tensor, requests: Rows, stay: Tensor, s_p: float, lam: float) -> Tensor:
    """Stack every square as a row of one least-squares problem: rows X c = v scaled by sqrt(w), and sqrt(lam) X = W."""
    left = torch.cat(
        [
            requests.weights.sqrt()[:, None] * requests.inputs,
            s_p**0.5 * stay,
            lam**0.5 * torch.eye(N, dtype=torch.float64),
        ]
    )
    right = torch.cat([requests.weights.sqrt()[:, None] * wanted, s_p**0.5 * stay @ weight.T, lam**0.5 * weight.T])
    solution: Tensor = torch.linalg.lstsq(left, right).solution
    return solution.T


@pytest.mark.parametrize("rule", ["replace", "projected", "projected_jointly"])
def test_the_edit_is_the_least_squares_solution(rule: str) -> None:
    weight = drawn(M, N)
    ridge = Ridge.of(rows(), kept(), 0.4)
    expected = brute_force(weight, values(weight, rows(), rule), rows(), drawn(P, N, seed=3), 0.3, 0.4)  # type: ignore[arg-type]
    assert torch.allclose(ridge.edited(weight, rule), expected, atol=1e-12)  # type: ignore[arg-type]
    wrong = Ridge.of(rows(), kept(), 0.5).edited(weight, rule)  # type: ignore[arg-type]
    assert not torch.allclose(wrong, expected, atol=1e-3)  # the control: another ridge


def test_the_normal_equations_hold() -> None:
    """W* B = A, with A and B summed row by row, as the methods' papers write them."""
    weight, lam, s_p, requests = drawn(M, N), 0.4, 0.3, rows()
    a, b = lam * weight, lam * torch.eye(N, dtype=torch.float64)
    for c, g, w in zip(requests.inputs, requests.guides, requests.weights, strict=True):
        a, b = a + w * torch.outer(weight @ g, c), b + w * torch.outer(c, c)
    for r in drawn(P, N, seed=3):
        a, b = a + s_p * torch.outer(weight @ r, r), b + s_p * torch.outer(r, r)
    ridge = Ridge.of(requests, kept(), lam)
    assert (ridge.edited(weight) @ b - a).abs().max() < 1e-12
    assert ridge.condition == pytest.approx(float(torch.linalg.cond(b)), rel=1e-9)
    assert (ridge.edited(weight) @ (b + 0.1 * torch.eye(N)) - a).abs().max() > 1e-2


def test_without_a_ridge_kept_inputs_keep_their_outputs_and_the_others_get_theirs() -> None:
    """With no more rows than unknowns all squares can vanish, and do as lam goes to 0; at lam = 1 they do not."""
    weight, requests, stay = drawn(M, N), rows(2), drawn(P, N, seed=3)
    exact = Ridge.of(requests, kept(), 1e-10).edited(weight)
    assert torch.allclose(stay @ exact.T, stay @ weight.T, atol=1e-6)
    assert torch.allclose(requests.inputs @ exact.T, requests.guides @ weight.T, atol=1e-6)
    held = Ridge.of(requests, kept(), 1.0).edited(weight)
    assert (requests.inputs @ held.T - requests.guides @ weight.T).abs().max() > 1e-2


def test_nothing_to_change_leaves_the_map_bit_for_bit() -> None:
    weight = drawn(M, N)
    same = Rows(rows().inputs, rows().inputs, rows().weights, rows().prompts)
    assert torch.equal(Ridge.of(same, kept(), 0.1).edited(weight), weight)
    assert torch.allclose(Ridge.of(rows(), kept(), 1e12).edited(weight), weight, atol=1e-9)


def test_projected_values_are_orthogonal_to_the_maps_own() -> None:
    """<v, W c> = 0 for each row; jointly, its sum over a prompt's rows is 0. W g itself (the control) is not."""
    weight, requests = drawn(M, N), rows()
    now = requests.inputs @ weight.T
    assert ((values(weight, requests, "projected") * now).sum(dim=1)).abs().max() < 1e-12
    jointly = (values(weight, requests, "projected_jointly") * now).sum(dim=1)
    assert jointly[:2].sum().abs() < 1e-12 and jointly[2].abs() < 1e-12 and jointly[0].abs() > 1e-2
    assert ((values(weight, requests, "replace") * now).sum(dim=1)).abs().min() > 1e-2


def test_an_input_that_a_map_sends_to_0_has_nothing_to_project() -> None:
    silent = torch.zeros(M, N, dtype=torch.float64)
    assert torch.equal(values(silent, rows(), "projected"), torch.zeros(R, M, dtype=torch.float64))


def test_a_singular_system_is_refused() -> None:
    """Three requests and one kept input cannot say what six unknowns are; nor can inputs that repeat each other."""
    with pytest.raises(RecipeError, match=r"edit\.lam=0\.1"):
        Ridge.of(rows(), kept(1), 0.0)
    repeated = Rows(drawn(1, N).repeat(8, 1), drawn(8, N), torch.ones(8).double(), torch.arange(8))
    with pytest.raises(RecipeError, match=r"edit\.lam"):
        Ridge.of(repeated, Kept.nothing(N), 0.0)
    assert Ridge.of(rows(), kept(), 0.0).condition < 1e6  # seven inputs say it


def test_a_singular_system_is_regularised_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The smallest change that does what is asked: the limit of a vanishing ridge, by the pseudo-inverse."""
    weight, requests = drawn(M, N), rows(2, torch.ones(2).double())
    with caplog.at_level(logging.WARNING):
        ridge = Ridge.of(requests, kept(1), 0.0, "regularise")
    assert "is added" in caplog.text and ridge.lam > 0 and ridge.condition < 1e12
    inputs = torch.cat([requests.inputs, drawn(P, N, seed=3)[:1]])
    wanted = torch.cat([requests.guides, drawn(P, N, seed=3)[:1]]) @ weight.T - inputs @ weight.T
    smallest = weight + (torch.linalg.pinv(inputs) @ wanted).T
    assert torch.allclose(ridge.edited(weight), smallest, atol=1e-5)


def test_a_sound_system_is_not_touched_by_regularise(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ridge = Ridge.of(rows(), kept(), 0.4, "regularise")
    assert ridge.lam == 0.4 and not caplog.text


def test_sums_are_saved_read_and_joined(tmp_path: Path) -> None:
    first, mark = kept(2), drawn(N, seed=9)
    first.mark = mark
    first.save(tmp_path / "sums.safetensors")
    again = Kept.load(tmp_path / "sums.safetensors")
    assert torch.equal(again.gram, first.gram) and again.count == 2
    second = Kept.nothing(N)
    second.add(drawn(P, N, seed=3)[2:], 0.3)
    second.mark = mark
    second.join(again)
    assert torch.allclose(second.gram, kept().gram) and second.count == P
    twice = Kept.nothing(N)
    twice.mark = mark
    twice.join(again, 2.0)
    assert torch.equal(twice.gram, 2 * first.gram)


def test_sums_of_another_encoder_are_refused(tmp_path: Path) -> None:
    mine, other = kept(), kept()
    mine.mark, other.mark = drawn(N, seed=9), drawn(N, seed=8)
    with pytest.raises(RecipeError, match="Collect them"):
        mine.join(other)
    with pytest.raises(RecipeError, match="Collect them"):
        mine.join(Kept.nothing(N + 1))
    with pytest.raises(RecipeError, match="Collect them anew"):
        Kept.load(tmp_path / "none.safetensors")
