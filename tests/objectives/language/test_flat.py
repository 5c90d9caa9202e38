"""FLAT's f-divergences: each conjugate is f's, each activation increases, and the loss lowers the right answer."""

import math
from pathlib import Path

import pytest
import torch

from tests.toys.language_objectives import Bench, Bigram, answers_of, refusal_counts
from unlearn.objectives.language.flat import DIVERGENCES, FLAT, RELEASED

RATIOS = torch.tensor([0.05, 0.3, 0.9, 1.2, 3.0, 20.0], dtype=torch.float64)
PROBABILITIES = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)


def slope(function, at: torch.Tensor) -> torch.Tensor:
    point = at.clone().requires_grad_()
    return torch.autograd.grad(function(point).sum(), point)[0]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_conjugate_is_that_of_f(name: str) -> None:
    """f*(t) = sup_u (u t - f(u)), reached at t = f'(u): f*(f'(u)) = u f'(u) - f(u), and f(1) = 0."""
    chosen = DIVERGENCES[name]
    t = slope(chosen.f, RATIOS)
    assert torch.allclose(chosen.conjugate(t), RATIOS * t - chosen.f(RATIOS), atol=1e-9)
    assert chosen.f(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - {"total_variation"}))
def test_the_conjugates_slope_is_the_ratio(name: str) -> None:
    """(f*)'(f'(u)) = u: also where it is found by iteration (Jeffrey)."""
    chosen = DIVERGENCES[name]
    assert torch.allclose(slope(chosen.conjugate, slope(chosen.f, RATIOS)), RATIOS, rtol=1e-8)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_variational_form_is_a_lower_bound(name: str) -> None:
    """E_P[T] - E_Q[f*(T)] <= D_f(P || Q) for any T = g(v), with equality at T = f'(p / q)."""
    chosen = DIVERGENCES[name]
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    divergence = (q * chosen.f(p / q)).sum()
    best = slope(chosen.f, p / q)
    assert (p * best - q * chosen.conjugate(best)).sum().item() == pytest.approx(divergence.item(), abs=1e-9)
    for seed in range(20):
        v = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        t = chosen.activation(v)
        assert (p * t - q * chosen.conjugate(t)).sum() <= divergence + 1e-9


def slopes(name: str, variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """d loss / d P of the template, and of the forget answer, each over a range, the other at 0.5."""
    loss, fixed = FLAT(divergence=name, variant=variant).loss, torch.full_like(PROBABILITIES, 0.5)
    return slope(lambda x: loss(x, fixed), PROBABILITIES), slope(lambda x: loss(fixed, x), PROBABILITIES)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_loss_raises_the_template_and_lowers_the_forget_answer(name: str) -> None:
    template, forget = slopes(name, "derived")
    assert (template < 0).all() and (forget > 0).all()
    assert (slope(DIVERGENCES[name].activation, 4 * PROBABILITIES - 2) > 0).all()


def test_the_released_signs_are_turned_where_we_say_so() -> None:
    """The control: the authors' code for three divergences lowers the template; two of them raise the forget answer."""
    turned = {}
    for name in RELEASED:
        template, forget = slopes(name, "released")
        turned[name] = (bool((template > 0).all()), bool((forget < 0).all()))
    assert turned == {
        "reverse_kl": (True, True),
        "jeffrey": (False, False),
        "squared_hellinger": (True, True),
        "neyman": (True, False),
    }


def test_the_other_four_are_as_released() -> None:
    assert set(DIVERGENCES) - set(RELEASED) == {"total_variation", "jensen_shannon", "pearson", "kl"}
    for name in set(DIVERGENCES) - set(RELEASED):
        both = [
            FLAT(divergence=name, variant=v).loss(PROBABILITIES, PROBABILITIES.flip(0)) for v in ("derived", "released")
        ]
        assert torch.equal(*both)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("total_variation", lambda e, f: math.tanh(f) / 2 - math.tanh(e) / 2),
        ("jensen_shannon", lambda e, f: math.log(1 + math.exp(f)) - 2 * math.log(2) + math.log(1 + math.exp(-e))),
        ("pearson", lambda e, f: f**2 / 4 + f - e),
        ("kl", lambda e, f: math.exp(f - 1) - e),
        ("reverse_kl", lambda e, f: -1 + f + math.exp(-e)),
        ("squared_hellinger", lambda e, f: (1 - math.exp(-f)) / math.exp(-f) - 1 + math.exp(-e)),
        ("neyman", lambda e, f: 2 - 2 * math.exp(-f / 2) - 1 + math.exp(-e)),
    ],
)
def test_the_value_is_the_formulas(name: str, loss, tmp_path: Path) -> None:
    """The model says token 1 with q = 0.7: the answer "aaa" has P = q, the refusal the mean over its tokens."""
    q = 0.7
    ones, zeros = refusal_counts()
    template = (ones * q + zeros * (1 - q)) / (ones + zeros)
    own = Bench(tmp_path, Bigram(q), answers_of("aaa"), FLAT(divergence=name))
    assert own.value() == pytest.approx(loss(template, q), abs=1e-12)
    other = Bench(tmp_path, Bigram(q), answers_of("aaa", alternate="bb"), FLAT(divergence=name, instead="alternate"))
    assert other.value() == pytest.approx(loss(1 - q, q), abs=1e-12)
