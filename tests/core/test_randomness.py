"""Counter-based randomness: known answers, independence of batch and order, distribution."""

import pytest
import torch

from unlearn.core.randomness import Randomness, philox


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    """The known-answer vectors that come with Random123 (zeros, ones, digits of pi)."""
    assert tuple(philox(torch.tensor(counter), *key).tolist()) == answer


def test_a_draw_depends_on_the_id_alone() -> None:
    stream = Randomness(3, "noise", step=7)
    together = stream.uniform(torch.tensor([4, 9, 2]), (5,))
    alone = torch.cat([stream.uniform(torch.tensor([item]), (5,)) for item in (4, 9, 2)])
    assert torch.equal(together, alone)
    normal = stream.normal(torch.tensor([4, 9, 2]), (3, 3))
    assert torch.equal(normal[1:2], stream.normal(torch.tensor([9]), (3, 3)))


def test_seed_purpose_step_and_id_all_matter() -> None:
    ids = torch.arange(4)
    base = Randomness(0, "a", 0)
    others = [Randomness(1, "a", 0), Randomness(0, "b", 0), base.at(1), base.child("x")]
    first = base.uniform(ids, (8,))
    assert all(not torch.equal(first, other.uniform(ids, (8,))) for other in others)
    assert len(first.unique()) == first.numel()
    assert not torch.equal(first, base.uniform(ids + 2**33, (8,)))


def test_moments_of_the_draws() -> None:
    """Mean 1/2 and variance 1/12 of the uniform, 0 and 1 of the normal, within 5 standard errors of n = 200,000."""
    ids = torch.arange(2000)
    uniform = Randomness(5, "u").uniform(ids, (100,), torch.float64)
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / 2e5) ** 0.5
    assert abs(uniform.var() - 1 / 12) < 5 * (1 / 180 / 2e5) ** 0.5
    assert uniform.min() >= 0 and uniform.max() < 1
    normal = Randomness(5, "n").normal(ids, (100,), torch.float64)
    assert abs(normal.mean()) < 5 / 2e5**0.5
    assert abs(normal.var() - 1) < 5 * (2 / 2e5) ** 0.5
    assert abs(normal.pow(3).mean()) < 5 * (15 / 2e5) ** 0.5
    assert normal.isfinite().all()


def test_integers_and_permutations() -> None:
    drawn = Randomness(1, "i").integers(torch.arange(10_000), 7)
    assert drawn.min() == 0 and drawn.max() == 6
    assert (drawn.bincount() - 10_000 / 7).abs().max() < 5 * (10_000 / 7) ** 0.5
    order = Randomness(1, "p").permutation(50)
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))
    assert order.tolist() != Randomness(1, "p", 1).permutation(50).tolist()


def test_generators_repeat() -> None:
    stream = Randomness(2, "g")
    draw = torch.rand(3, generator=stream.generator(item=1))
    assert torch.equal(draw, torch.rand(3, generator=stream.generator(item=1)))
    assert not torch.equal(draw, torch.rand(3, generator=stream.generator(item=2)))
