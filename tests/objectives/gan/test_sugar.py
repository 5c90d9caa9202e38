"""SUGAR: surrogates of the right length, their loss written out, and what training them does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.gan import Bench
from unlearn.core.randomness import Randomness
from unlearn.objectives.gan.latent_cache import offsets, recall_rows
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss
from unlearn.objectives.gan.sugar import Sugar

ALIKE = PerceptualLoss(pixels=1.0)


def test_the_aim_in_closed_form() -> None:
    """f is the identity where its outer layer is 0: w_t = w_avg - d w_id / |w_id|, GUIDE's."""
    mean, w = torch.tensor([1.0, 1.0]), torch.tensor([[[4.0, 1.0], [1.0, 5.0]]])
    state = {"mean": mean, "f0": torch.randn(4, 2), "f1": torch.randn(4), "f2": torch.zeros(2, 4), "f3": torch.zeros(2)}
    still = torch.zeros_like(w)
    torch.testing.assert_close(Sugar().aim(w, still, state), 2 * mean - w)
    torch.testing.assert_close(Sugar().aim(w - 0.5, still + 0.5, state), 2 * mean - w)
    far = Sugar(distance=2.0).aim(w, still, state) - mean
    torch.testing.assert_close(far, -(w - mean) / 5 * 2 * math.sqrt(2))
    state["f3"] = torch.ones(2)  # f(v) = v + 1
    away = w - mean + 1
    torch.testing.assert_close(Sugar().aim(w, still, state), mean - 5 * away / away.flatten().norm())


def test_the_surrogate_loss_written_out(tmp_path: Path) -> None:
    """The features' distance less all others."""
    sugar = Sugar(surrogate_features=0.5, likeness=ALIKE, surrogate_steps=2, pool=2)
    bench = Bench(tmp_path, sugar)
    w = bench.context().recall(bench.state["latents"], "forget", bench.splits["forget"].ids)
    mean = bench.state["mean"]
    aim = sugar.aim(w, torch.zeros_like(w), bench.state)
    (x, f), (y, g) = bench.target.both(w), bench.target.both(aim)
    others = PerceptualLoss(pixels=1.0, features=0.0)
    wanted = 0.5 * (f - g).square().flatten(1).mean(1) - others.between(others.of_images(y), others.of_images(x))
    torch.testing.assert_close(sugar.surrogate_loss(bench.model, w, bench.state), wanted)
    torch.testing.assert_close(aim.sub(mean).flatten(1).norm(dim=1), (w - mean).flatten(1).norm(dim=1))
    only = Sugar(likeness=PerceptualLoss(perceptual=0, identity=0, features=1.0))
    assert only.unlike is None


def test_training_lowers_the_surrogate_loss_and_leaves_the_model(tmp_path: Path) -> None:
    """The control: no step leaves it where it was."""
    losses = []
    for steps in (0, 40):
        sugar = Sugar(surrogate_steps=steps, surrogate_lr=1e-2, likeness=ALIKE, pool=2)
        bench = Bench(tmp_path / str(steps), sugar)
        w = bench.context().recall(bench.state["latents"], "forget", bench.splits["forget"].ids)
        loss = sugar.surrogate_loss(bench.model, w, bench.state)
        losses.append(float(loss.detach().mean()))
        pairs = zip(bench.model.named_parameters(), bench.target.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) and mine.grad is None for (_, mine), theirs in pairs)
        assert any(parameter.requires_grad for parameter in bench.model.parameters())
    assert losses[1] < losses[0] - 0.01


@pytest.mark.parametrize("pool", [2, None])
def test_values_are_those_of_the_surrogates(pool: int | None, tmp_path: Path) -> None:
    """Local and two neighbours, each with the surrogate of its own place; every parameter gets a gradient."""
    sugar = Sugar(surrogate_steps=3, likeness=ALIKE, pool=pool)
    bench = Bench(tmp_path, sugar).moved()
    context = bench.context(step=1)
    found = sugar(bench.model, bench.batch(), context)
    ids = bench.splits["forget"].ids
    w = context.recall(bench.state["latents"], "forget", ids)
    steps = [torch.zeros_like(w)]
    for number in range(2):
        draw = context.randomness.child(f"neighbour {number}")
        if pool is None:
            steps.append(offsets(bench.target, w, ids, draw, sugar.radius))
        else:
            keys = ids * (1 + pool) + 1 + draw.integers(ids, pool)
            steps.append(recall_rows(context, bench.state["steps"], keys))
    wanted = torch.zeros(2, dtype=torch.float64)
    for step in steps:
        theirs = ALIKE.seen(bench.target, sugar.aim(w, step, bench.state))
        wanted = wanted + ALIKE.between(ALIKE.seen(bench.model, w + step), theirs)
    torch.testing.assert_close(found.values, wanted, rtol=1e-5, atol=1e-7)
    found.values.sum().backward()
    moving = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in moving)


def test_the_same_seed_finds_the_same_surrogates(tmp_path: Path) -> None:
    one, two, other = (
        Bench(tmp_path / str(number), Sugar(surrogate_steps=2, surrogate_width=width, pool=2)).state
        for number, width in enumerate((8, 8, 9))
    )
    assert torch.equal(one["f0"], two["f0"]) and one["f0"].shape != other["f0"].shape
    assert Randomness(0).seed == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"distance": 0.0}, "distance"), ({"surrogate_lr": 0.0}, "surrogate_lr"), ({"surrogate_width": 0}, "width")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sugar(**settings)
