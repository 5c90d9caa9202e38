"""GUIDE: the aims in closed form, both terms one image at a time, and what a run does to identities and strangers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.gan import Bench, Faces, face_splits, rounded, small_gan
from unlearn.core.randomness import Randomness
from unlearn.models.feature_extractors.embedders import identity_net, perceptual_net
from unlearn.objectives.gan.global_preservation import GlobalPreservation
from unlearn.objectives.gan.guide import Guide
from unlearn.objectives.gan.latent_cache import recall_rows
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss, unpack

STREAM = Randomness(0, "test")
PIXELS = PerceptualLoss(pixels=1.0, features=0.0, perceptual=0.0, identity=0.0)


def latents(bench: Bench) -> Tensor:
    return bench.context().recall(bench.state["latents"], bench.split, bench.splits[bench.split].ids)


def aim(guide: Guide, w: Tensor, mean: Tensor) -> Tensor:
    return guide.aim(w, torch.zeros_like(w), {"mean": mean})


def test_the_aims_in_closed_form() -> None:
    """w_u - w_avg = (3, 0), (0, 4) of two layers, length 5; d = 2 per layer is 2 sqrt 2 over both."""
    mean = torch.tensor([1.0, 1.0])
    w = mean + torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    torch.testing.assert_close(aim(Guide(), w, mean), torch.tensor([[[-2.0, 1.0], [1.0, -3.0]]]))
    torch.testing.assert_close(aim(Guide(target="average"), w, mean), torch.ones(1, 2, 2))
    far = aim(Guide(distance=2.0), w, mean) - mean
    torch.testing.assert_close(far, -(w - mean) / 5 * 2 * math.sqrt(2))
    torch.testing.assert_close(aim(Guide(distance=0.0), w, mean), torch.ones(1, 2, 2))


@pytest.mark.parametrize(("other", "apart"), [({"distance": 5.0}, True), ({"weight": 2.0}, False)])
def test_terms_of_one_folder_keep_each_their_own_aims(other: dict[str, float], apart: bool, tmp_path: Path) -> None:
    first = Bench(tmp_path, Guide(likeness=PIXELS, distance=1.0))
    second = Bench(tmp_path, Guide(likeness=PIXELS, **{"distance": 1.0, **other}))
    assert bool((first.values().values != second.values().values).any()) == apart


def test_likeness_is_the_sum_of_its_parts() -> None:
    """Each part by its definition, with nets that are asked apart."""
    model, other = small_gan(), small_gan()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    w = model.mapping(model.latent(torch.arange(3), STREAM))
    (x, f), (y, g) = model.both(w), other.both(w)
    looks, embedder = perceptual_net(None, (1, 8, 8)), identity_net(None, (1, 8, 8))
    parts = {
        "pixels": rounded(x - y).flatten(1).mean(1),
        "features": (f - g).square().flatten(1).mean(1),
        "perceptual": looks(x, y).double(),
        "identity": embedder.distance(embedder(x), embedder(y)).double(),
    }
    none = dict.fromkeys(parts, 0.0)
    for name, wanted in parts.items():
        alone = PerceptualLoss(**{**none, name: 2.0})
        torch.testing.assert_close(alone.between(alone.seen(model, w), alone.seen(other, w)), 2 * wanted)
    squares = PerceptualLoss(pixels=1.0, norm="l2", features=0, perceptual=0, identity=0)
    found = squares.between(squares.seen(model, w), squares.seen(other, w))
    torch.testing.assert_close(found, (x - y).square().flatten(1).mean(1))
    both = PerceptualLoss(pixels=0.3)
    total = 0.3 * parts["pixels"] + 0.01 * parts["features"] + parts["perceptual"] + 0.1 * parts["identity"]
    seen = both.seen(other, w)
    again = unpack(seen.pack(), seen.shapes)
    torch.testing.assert_close(both.between(both.seen(model, w), again), total, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="all 0"):
        PerceptualLoss(features=0, perceptual=0, identity=0)


@pytest.mark.parametrize("settings", [{}, {"target": "average"}, {"distance": 1.5}, {"reach": 0.2}, {"local": 0.0}])
def test_values_are_those_of_a_loop_of_one_image_at_a_time(settings: dict[str, Any], tmp_path: Path) -> None:
    """D_i = a (w_r - w_u) / |w_r - w_u|, a = u longest, with every image of the target drawn anew."""
    guide = Guide(pool=None, likeness=PerceptualLoss(pixels=1.0), **settings)
    bench = Bench(tmp_path, guide).moved()
    model, target, context = bench.model, bench.target, bench.context(step=3)
    found = guide(model, bench.batch(), context)
    mean = target.w_avg

    def apart(here: Tensor, there: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = guide.likeness.seen(target, there)
        return guide.likeness.between(guide.likeness.seen(model, here), theirs)[0]

    for row, (item, w) in enumerate(zip(bench.splits["forget"].ids.tolist(), latents(bench), strict=True)):
        there = aim(guide, w[None], mean)
        wanted = guide.local * apart(w[None], there)
        reach = guide.distance / 2 if guide.distance else guide.reach
        longest = (w - mean).norm() / 2 if reach is None else reach * math.sqrt(len(w))
        for number in range(2):
            draw = context.randomness.child(f"neighbour {number}")
            key = torch.tensor([item])
            away = target.mapping(target.latent(key, draw)) - w
            step = away / away.norm() * longest * draw.child("length").uniform(key, (), torch.float64)
            wanted = wanted + guide.adjacent * apart(w[None] + step, there + step)
        torch.testing.assert_close(found.values[row], wanted, rtol=1e-5, atol=1e-7)


def test_a_pool_holds_no_second_model_and_gives_the_same_images(tmp_path: Path) -> None:
    """The target's images are read back; nobody asks for the target, and one forward pass makes all images."""
    guide = Guide(pool=3, neighbours=4)
    bench = Bench(tmp_path, guide).moved()

    def refuse() -> Any:
        raise AssertionError("the target was asked for")

    passes = []
    handle = bench.model.generator.synthesis.b4.register_forward_hook(lambda *given: passes.append(len(given[2][0])))
    found = guide(bench.model, bench.batch(), bench.context(step=5, reference=refuse))
    handle.remove()
    assert passes == [2 * (1 + 4)]
    steps = recall_rows(bench.context(), bench.state["steps"], torch.arange(8)).view(2, 4, -1, 5)
    w, mean = latents(bench), bench.target.w_avg
    for row in range(2):
        picks = [
            int(bench.context(step=5).randomness.child(f"neighbour {number}").integers(torch.tensor([row]), 3))
            for number in range(4)
        ]
        wanted = torch.zeros(())
        for step in [torch.zeros_like(w[row]), *(steps[row, 1 + pick] for pick in picks)]:
            here, there = w[row : row + 1] + step, aim(guide, w[row : row + 1], mean) + step
            seen = guide.likeness.seen(bench.model, here), guide.likeness.seen(bench.target, there)
            wanted = wanted + guide.likeness.between(*seen)[0]
        torch.testing.assert_close(found.values[row], wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(bench.state["target_latents"], aim(guide, w, mean))
    torch.testing.assert_close(bench.state["identity_latents"], w)
    assert torch.equal(bench.state["identity_ids"], bench.splits["forget"].ids)
    assert (steps[:, 0] == 0).all() and (steps[:, 1:].flatten(2).norm(dim=2) > 0).all()
    longest = (w - mean).flatten(1).norm(dim=1) / 2
    assert (steps.flatten(2).norm(dim=2) <= longest[:, None] + 1e-9).all()


@pytest.mark.parametrize("kind", ["stylegan2", "dcgan"])
@pytest.mark.parametrize(
    "guide",
    [
        Guide(local=1, adjacent=0, likeness=PIXELS),
        Guide(local=0, adjacent=1, likeness=PIXELS, pool=2),
        Guide(adjacent=0, likeness=PerceptualLoss(pixels=0, features=0, perceptual=1, identity=0)),
        Guide(adjacent=0, likeness=PerceptualLoss(pixels=0, features=0, perceptual=0, identity=1)),
    ],
    ids=["local", "adjacent", "perceptual", "identity"],
)
def test_every_term_has_a_gradient(guide: Guide, kind: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, guide, kind)
    bench.values().values.sum().backward()
    for name, parameter in bench.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), name
        else:
            assert parameter.grad is None


def test_latents_seeds_and_images_are_identities_alike(tmp_path: Path) -> None:
    """A latent that is the one of a seed gives the same values."""
    guide = Guide(pool=2)
    seeds = Bench(tmp_path / "s", guide)
    w = latents(seeds)
    splits = face_splits(latents=torch.cat([w, w[:1]]))
    given = Bench(tmp_path / "w", guide, splits=splits)
    torch.testing.assert_close(given.values().values, seeds.values().values)
    assert isinstance(splits["forget"].dataset, Faces)


def trained(folder: Path, guide: Guide, keep: float = 0.0, steps: int = 60) -> Bench:
    """The model after Adam on GUIDE, and on the global term with weight ``keep``."""
    bench = Bench(folder / "forget", guide)
    other = Bench(folder / "keep", GlobalPreservation(pool=None), split="retain")
    optimizer = torch.optim.Adam([p for p in bench.model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(steps):
        loss = bench.values(step=step).values.mean()
        if keep:
            loss = loss + keep * other.objective(bench.model, other.batch(), other.context(step)).values.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bench


def reached(bench: Bench) -> tuple[float, float]:
    """Return how far the images of w_u are from the target's of the reflection, and from what they were."""
    w = latents(bench)
    with torch.no_grad():
        now = bench.model.synthesis(w)
        wanted, before = (bench.target.synthesis(there) for there in (2 * bench.target.w_avg - w, w))
    return float((now - wanted).abs().mean()), float((now - before).abs().mean())


def test_the_identity_becomes_its_reflection_and_strangers_stay(tmp_path: Path) -> None:
    """The control, d = 0, does not come to the reflection; and without the global term strangers move further."""
    near, far = reached(trained(tmp_path / "a", Guide(likeness=PerceptualLoss(pixels=1.0), pool=8)))
    assert near < 0.6 * far
    short, _ = reached(trained(tmp_path / "b", Guide(distance=0.0, likeness=PerceptualLoss(pixels=1.0), pool=8)))
    assert short > 1.5 * near
    guide = Guide(likeness=PerceptualLoss(pixels=1.0), pool=8)
    moved = []
    for number, keep in enumerate((0.0, 20.0)):
        bench = trained(tmp_path / f"c{number}", guide, keep)
        w = bench.target.mapping(bench.target.latent(torch.arange(50, 66), STREAM))
        with torch.no_grad():
            moved.append(float((bench.model.synthesis(w) - bench.target.synthesis(w)).abs().mean()))
    assert moved[1] < 0.7 * moved[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distance": -1.0}, "distance"),
        ({"target": "average", "distance": 2.0}, "distance"),
        ({"local": 0.0, "adjacent": 0.0}, "local"),
        ({"local": 0.0, "neighbours": 0}, "local"),
        ({"pool": 0}, "pool"),
        ({"reach": -0.1}, "reach"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guide(**settings)
