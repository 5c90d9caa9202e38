"""The global term: nothing at the target, the distance of two models elsewhere, and which latents are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.gan import INFO, Bench, digit_splits, rounded
from unlearn.core.randomness import Randomness
from unlearn.models.scope import All
from unlearn.objectives.gan.forget_classifier import ForgetClassifier
from unlearn.objectives.gan.global_preservation import GlobalPreservation
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss

PIXELS = PerceptualLoss(pixels=1.0, features=0.0, perceptual=0.0, identity=0.0)
WAYS = [{"pool": 6}, {"pool": None}, {"latents": "items"}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_it_is_the_distance_of_the_images_of_both_models(way: dict[str, Any], tmp_path: Path) -> None:
    """Zero with no gradient at the target; elsewhere, latent by latent, the mean absolute difference of pixels."""
    term = GlobalPreservation(likeness=PIXELS, **way)
    bench = Bench(tmp_path, term, split="retain")
    values = bench.values(step=2).values
    values.sum().backward()
    assert float(values.detach().max()) < 1e-9
    bench.moved()
    context, batch = bench.context(step=2), bench.batch()
    found = bench.values(step=2).values
    for row, item in enumerate(batch["id"]):
        if "latents" in way:
            w = context.recall(bench.state["latents"], "retain", item[None])
        elif way["pool"] is None:
            w = bench.target.mapping(bench.target.latent(item[None], context.randomness))
        else:
            chosen = context.randomness.integers(item[None], 6)
            w = bench.target.mapping(bench.target.latent(chosen, Randomness(0, "global")))
        wanted = rounded(bench.model.synthesis(w) - bench.target.synthesis(w)).mean()
        torch.testing.assert_close(found[row], wanted)
    assert float(found.detach().min()) > 0.01


def test_the_mapping_network_is_kept_too_where_it_may_move(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GlobalPreservation(likeness=PIXELS), split="retain", scope=All()).moved()
    bench.values().values.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in bench.model.parameters())


@pytest.mark.parametrize("pool", [64, None])
def test_latents_in_whose_image_the_judge_sees_what_is_forgotten_are_left_out(pool: int | None, tmp_path: Path) -> None:
    """The untrained generator's images look like some digit to the net; that digit is taken as the forgotten one."""
    plain = Bench(tmp_path / "p", GlobalPreservation(pool=64, likeness=PIXELS), split="retain", splits=digit_splits())
    z = plain.target.latent(torch.arange(64), Randomness(0, "global"))
    images = plain.target.synthesis(plain.target.mapping(z))
    judge = ForgetClassifier("digitnet8")
    likely = judge.probability(plain.target, images, plain.context())
    assert judge.forgotten(judge.net(INFO["shape"], INFO), plain.splits["forget"]) == ["3"] and likely.shape == (64,)
    term = GlobalPreservation(pool=pool, judge="digitnet8", likeness=PIXELS)
    bench = Bench(tmp_path / "j", term, split="retain", splits=digit_splits()).moved()
    if pool is not None:
        assert torch.equal(bench.state["spared"], torch.arange(64)[likely < 0.5])
    else:
        ids = bench.batch()["id"]
        drawn = bench.target.synthesis(bench.target.mapping(bench.target.latent(ids, bench.context().randomness)))
        out = judge.probability(bench.target, drawn, bench.context()) >= 0.5
        assert torch.equal(bench.values().values == 0, out)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="pool"):
        GlobalPreservation(pool=0)
    with pytest.raises(ValueError, match="give judge too"):
        GlobalPreservation(label=["3"])


def test_a_label_says_what_is_left_out(tmp_path: Path) -> None:
    """Other labels than those that the forget items have, by the probability of each."""
    bench = Bench(tmp_path, GlobalPreservation(likeness=PIXELS), split="retain", splits=digit_splits())
    images = bench.target.synthesis(
        bench.target.mapping(bench.target.latent(torch.arange(64), Randomness(0, "global")))
    )
    likely = ForgetClassifier("digitnet8", ["5"]).probability(bench.target, images, bench.context())
    term = GlobalPreservation(pool=64, judge="digitnet8", label=["5"], likeness=PIXELS)
    judged = Bench(tmp_path / "j", term, split="retain", splits=digit_splits())
    assert torch.equal(judged.state["spared"], torch.arange(64)[likely < 0.5]) and len(judged.state["spared"]) < 64
