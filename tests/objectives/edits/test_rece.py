"""RECE: the embeddings that bring a concept back, and their edit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import small_model, small_splits
from unlearn.core.errors import RecipeError
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.objectives.edits.cross_attention import effective, keys_and_values
from unlearn.objectives.edits.rece import RECE, regenerating
from unlearn.objectives.edits.uce import UCE


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NOW, FIRST = [drawn(5, 6, seed=0), drawn(4, 6, seed=1)], [drawn(5, 6, seed=2), drawn(4, 6, seed=3)]
INPUTS = drawn(3, 6, seed=4)


@pytest.mark.parametrize("reg", [0.0, 0.1, 2.0])
def test_the_embedding_is_the_least_squares_solution(reg: float) -> None:
    """All maps stacked, and sqrt(reg) I x = 0 below them; another reg (the control) gives another."""
    left = torch.cat([*NOW, reg**0.5 * torch.eye(6, dtype=torch.float64)])
    right = torch.cat([*(INPUTS @ weight.T for weight in FIRST), torch.zeros(3, 6, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(left, right.T).solution.T
    assert torch.allclose(regenerating(NOW, FIRST, INPUTS, reg), expected, atol=1e-10)
    assert not torch.allclose(regenerating(NOW, FIRST, INPUTS, reg + 0.5), expected, atol=1e-3)


def test_where_the_maps_can_be_met_they_are() -> None:
    """W_l = W0_l T with T invertible: c' = T^-1 c gives W c' = W0 c exactly, and at W = W0 c' is c itself."""
    turned = drawn(6, 6, seed=5)
    now = [weight @ turned for weight in FIRST]
    found = regenerating(now, FIRST, INPUTS, 1e-12)
    assert all(torch.allclose(found @ w.T, INPUTS @ w0.T, atol=1e-7) for w, w0 in zip(now, FIRST, strict=True))
    assert torch.allclose(regenerating(FIRST, FIRST, INPUTS, 0.0), INPUTS, atol=1e-10)
    drawn_to_0 = regenerating(now, FIRST, INPUTS, 10.0)  # the control
    assert not torch.allclose(drawn_to_0 @ now[0].T, INPUTS @ FIRST[0].T, atol=1e-2)


def test_a_singular_system_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"edit\.reg=0\.1"):
        regenerating([drawn(2, 6, seed=0)], [drawn(2, 6, seed=1)], INPUTS, 0.0)


def result(**settings: Any) -> tuple[Diffusion, Diffusion]:
    model = small_model("text")
    return model, RECE(**settings)(model, lambda *given: None, small_splits("text"))


def weights(model: Diffusion) -> list[Tensor]:
    return list(effective(model, list(keys_and_values(model, "test"))).values())


def test_no_round_is_uce() -> None:
    uce = UCE(lam=0.2, tokens="all")
    target, rounds_0 = result(uce=uce, rounds=0)
    alone = uce(target, lambda *given: None, small_splits("text"))
    assert all(torch.equal(a, b) for a, b in zip(weights(rounds_0), weights(alone), strict=True))
    one = result(uce=uce, rounds=1)[1]
    assert not any(torch.equal(a, b) for a, b in zip(weights(one), weights(alone), strict=True))


def test_a_round_by_hand_and_what_it_does() -> None:
    """UCE, then the same edit of c'. What regenerated the concept before the round does so less after it."""
    uce = UCE(lam=0.01, preserve_scale=0.1, tokens="all", captions=0)
    target, before = result(uce=uce, rounds=0)
    after = result(uce=uce, rounds=1, reg=0.01)[1]
    first = weights(target)
    rows, kept = uce.requests(target, small_splits("text"))
    found = regenerating(weights(before), first, rows.inputs, 0.01)
    by_hand = small_model("text")
    layers = keys_and_values(by_hand, "test")
    uce.edit(by_hand, layers, rows, kept)
    uce.edit(by_hand, layers, replace(rows, inputs=found), kept)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(weights(after), weights(by_hand), strict=True))

    def regenerated(maps: list[Tensor]) -> float:
        return sum(float((found @ w.T - rows.inputs @ w0.T).norm()) for w, w0 in zip(maps, first, strict=True))

    assert regenerated(weights(after)) > 1.5 * regenerated(weights(before))


@pytest.mark.parametrize("setting", [{"rounds": 2}, {"reg": 1.0}, {"uce": UCE(lam=0.5, tokens="all")}], ids=str)
def test_every_setting_has_an_effect(setting: dict[str, Any]) -> None:
    assert not torch.equal(weights(result()[1])[0], weights(result(**setting)[1])[0])
