"""The score-target family in real runs: only what may move moves, cut and resumed anywhere, on adapters too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import Bench, Conditioning, small_job
from tests.toys.flow import stop_at
from unlearn.config.schema import Trainer
from unlearn.core.errors import Interrupted
from unlearn.core.optim import Optim
from unlearn.models.lora import Lora
from unlearn.models.scope import ByKind, Scope
from unlearn.objectives.base import Objective
from unlearn.objectives.common.gradient_ascent import GradientAscent
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.diffusion.concept_ablation import ConceptAblation
from unlearn.objectives.diffusion.denoising_ascent import DenoisingAscent
from unlearn.objectives.diffusion.esd import ESD
from unlearn.objectives.diffusion.noisy_states import AnchorStates, StateSource
from unlearn.objectives.diffusion.random_label import RandomLabel
from unlearn.objectives.diffusion.score_preservation import ScorePreservation
from unlearn.objectives.diffusion.sdd import SDD
from unlearn.training.fit import fit
from unlearn.training.module import UnlearningModule

TRAJECTORY = StateSource(source="trajectory", steps=3)
ANCHOR = AnchorStates(steps=3)

FORGET: dict[str, Objective] = {
    "esd": ESD(states=TRAJECTORY),
    "esd_student": ESD(states=StateSource(source="student", steps=3, spread=True)),
    "sdd": SDD(states=StateSource(source="average", steps=3)),
    "concept_ablation": ConceptAblation(states=ANCHOR, prior=0.1),
    "noise": ConceptAblation(states=ANCHOR, variant="noise"),
    "random_label": RandomLabel(),
    "any_label": RandomLabel(instead="random"),
    "denoising_ascent": DenoisingAscent(weight=0.1),
    "gradient_ascent": GradientAscent(weight=0.1),
}
RETAIN: dict[str, Objective] = {
    "score_preservation": ScorePreservation(),
    "generated": ScorePreservation(states=StateSource(source="generated", steps=3)),
    "training_loss": TrainingLoss(),
}
OPTIM = Optim(steps=4, batch=3, lr=1e-3, ema=0.9)


def run(module: UnlearningModule, folder: Path, **settings: Any) -> dict[str, Tensor]:
    fit(
        module, Trainer(**{"accelerator": "cpu", "precision": "64-true", "tensorboard": False, **settings}), folder, "t"
    )
    return {name: value.detach().clone() for name, value in module.model.named_parameters()}


def all_terms(
    folder: Path, conditioning: Conditioning = "dit", optim: Optim = OPTIM, scope: Scope | None = None
) -> UnlearningModule:
    return small_job({"forget": FORGET, "retain": RETAIN}, folder, conditioning, scope, optim=optim)


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(
    ("conditioning", "name", "kinds"),
    [
        ("text", "esd", ["not_cross_attention"]),
        ("text", "esd", ["cross_attention_kv"]),
        ("text", "sdd", ["cross_attention"]),
        ("text", "concept_ablation", ["cross_attention", "text_embeddings"]),
        ("text", "denoising_ascent", ["text_encoder_mlp", "text_encoder_last_attention"]),
        ("class", "random_label", ["self_attention", "embedding"]),
        ("dit", "esd_student", ["feed_forward"]),
        ("dit", "gradient_ascent", ["denoiser"]),
    ],
)
def test_two_steps_move_what_may_move_and_leave_the_rest_bit_identical(
    conditioning: Conditioning, name: str, kinds: list[str], tmp_path: Path
) -> None:
    """With weight decay and momentum, which reach no tensor that is out of scope; nor is the target touched."""
    optim = Optim(name="adamw", steps=2, batch=3, lr=1e-3, weight_decay=0.1, ema=0.5)
    module = small_job({"forget": {name: FORGET[name]}}, tmp_path, conditioning, ByKind(kinds), optim=optim)
    start = {key: value.detach().clone() for key, value in module.model.named_parameters()}
    may_move = set(ByKind(kinds).select(module.model))
    after = run(module, tmp_path)
    assert {key for key in start if not torch.equal(start[key], after[key])} == may_move
    assert 0 < len(may_move) < len(start) or kinds == ["denoiser"]
    target = dict(module.common.reference().named_parameters())
    assert all(torch.equal(target[key], value) for key, value in start.items())


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    """Trajectories of the target, of the model and of its average included."""
    whole = run(all_terms(tmp_path / "w"), tmp_path / "whole", checkpoint_every=2)
    stopped = all_terms(tmp_path / "c")
    stop_at(stopped, 3)
    with pytest.raises(Interrupted, match="step 3 of 4"):
        run(stopped, tmp_path / "cut", checkpoint_every=2)
    resumed = run(all_terms(tmp_path / "c"), tmp_path / "cut", checkpoint_every=2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """The control: another batch is another run."""
    optim = replace(OPTIM, steps=2, batch=4)
    whole = run(all_terms(tmp_path / "w", optim=optim), tmp_path / "whole")
    parts = run(all_terms(tmp_path / "p", optim=replace(optim, accumulate=3)), tmp_path / "parts")
    other = run(all_terms(tmp_path / "o", optim=replace(optim, batch=3)), tmp_path / "other")
    assert difference(whole, parts) < 1e-6 < 1e-4 < difference(whole, other)


def test_mixed_precision_keeps_the_gradient_of_scores_that_are_also_targets(tmp_path: Path) -> None:
    """The same weights are cast without gradient for the target first, and with gradient after."""
    module = all_terms(tmp_path, optim=replace(OPTIM, steps=2))
    module.model.float()
    module.common.reference().float()
    start = {key: value.detach().clone() for key, value in module.model.named_parameters()}
    after = run(module, tmp_path / "run", precision="bf16-mixed")
    assert all(value.isfinite().all() and not torch.equal(value, start[key]) for key, value in after.items())


@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_an_adapters_first_loss_is_that_of_the_model_without_one(conditioning: Conditioning, tmp_path: Path) -> None:
    """The target is the model with its adapter off: no second model is held, and only the adapter moves."""
    forget = {name: FORGET[name] for name in ("esd", "random_label")}
    losses = []
    for scope in (None, Lora(rank=2, kinds=["self_attention"])):
        folder = tmp_path / ("lora" if scope else "plain")
        module = small_job(
            {"forget": forget, "retain": {"keep": ScorePreservation()}}, folder, conditioning, scope, optim=OPTIM
        )
        start = {key: value.detach().clone() for key, value in module.model.named_parameters()}
        after = run(module, folder, log_every=1)
        rows = (folder / "metrics.csv").read_text().splitlines()
        losses.append(dict(zip(rows[0].split(","), rows[1].split(","), strict=True)))
        moving = {key for key in start if scope is None or ".lora_" in key}
        assert {key for key in start if not torch.equal(start[key], after[key])} == moving
    for key in losses[0]:
        if key.startswith("loss/forget"):
            assert float(losses[0][key]) == pytest.approx(float(losses[1][key]), rel=1e-4), key


def trained(own: Bench, steps: int = 40, lr: float = 1e-3) -> Bench:
    optimizer = torch.optim.Adam(own.model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        own.values(step=step).values.mean().backward()
        optimizer.step()
    return own


def scores(own: Bench, *names: str | None) -> list[Tensor]:
    """The model's and then the target's scores at some classes, None for nothing, at states of a later step."""
    found = own.objective.states(own.target, own.batch(), own.context(1000))  # type: ignore[attr-defined]
    with torch.no_grad():
        return [
            model.predict(found.x, found.t, model.null(8) if name is None else model.prompts([name] * 8))
            for name in names
            for model in (own.model, own.target)
        ]


def turned(own: Bench) -> float:
    """k in eps(c_f) = eps_0(c_n) + k (eps_0(c_f) - eps_0(c_n)), by least squares: 1 at the target, -eta after ESD."""
    now, concept, _, empty = scores(own, "3", None)
    guidance = concept - empty
    return float(((now - empty) * guidance).sum() / guidance.square().sum())


def test_esd_turns_the_score_away_from_the_concept(tmp_path: Path) -> None:
    """To -eta times the guidance; the control with eta = 0 takes the concept away and turns nothing."""
    assert turned(Bench(tmp_path / "0", ESD(states=TRAJECTORY), "dit")) == pytest.approx(1)
    assert turned(trained(Bench(tmp_path / "1", ESD(eta=1.0, states=TRAJECTORY), "dit"))) < -0.5
    assert turned(trained(Bench(tmp_path / "2", ESD(eta=0.0, states=TRAJECTORY), "dit"))) > -0.3


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().mean())


@pytest.mark.parametrize(
    ("objective", "near"),
    [
        (SDD(states=TRAJECTORY), None),
        (ConceptAblation(states=ANCHOR), "8"),
        (RandomLabel(), "8"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Objective) else str(given),
)
def test_the_score_at_the_concept_comes_to_that_at_the_aim(
    objective: Objective, near: str | None, tmp_path: Path
) -> None:
    """At nothing, or at the anchor; the control: the score at a third class does not come near as well."""
    own = Bench(tmp_path, objective, "dit")
    before, after = [], []
    for found in (before, after):
        concept, aim, third = scores(own, "3", near, "1")[::2]
        found += [distance(concept, aim), distance(concept, third)]
        if found is before:
            trained(own)
    assert after[0] < 0.2 * before[0] and after[1] > 0.3 * before[1]


def test_ascent_raises_the_loss_and_preservation_brings_the_score_back(tmp_path: Path) -> None:
    """The control of the first is the wrong sign: descent lowers it."""
    own = Bench(tmp_path / "up", DenoisingAscent(), "dit")
    start = -own.values().values.mean().item()
    trained(own, 10)
    assert -own.values().values.mean().item() > 1.2 * start
    keep = Bench(tmp_path / "keep", ScorePreservation(), "dit")
    keep.model.load_state_dict(own.model.state_dict())
    away = keep.values().values.mean().item()
    trained(keep, 40, 2e-3)
    assert keep.values().values.mean().item() < 0.3 * away
