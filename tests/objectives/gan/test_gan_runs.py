"""GAN objectives in real runs: what may move moves, all combinations and scopes, a resume, and two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys import ROOT
from tests.toys.command import unlearn_in_a_process
from tests.toys.flow import digits_splits as flow_splits
from tests.toys.flow import small_glow, stop_at
from tests.toys.gan import OPTIM, SYNTHESIS, digit_splits, small_gan, small_job
from unlearn.config.recipe import load
from unlearn.config.schema import Trainer
from unlearn.core.errors import Interrupted, RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.gan.wrapper import LatentGenerator
from unlearn.models.lora import Lora
from unlearn.models.scope import ByKind, Saliency, Scope
from unlearn.objectives.base import Objective
from unlearn.objectives.common.ewc import EWC
from unlearn.objectives.common.gradient_ascent import GradientAscent
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.gan.global_preservation import GlobalPreservation
from unlearn.objectives.gan.guide import Guide
from unlearn.objectives.gan.latent_projection import LatentProjection
from unlearn.objectives.gan.sugar import Sugar
from unlearn.objectives.surgery import GRU, OneSided, PCGrad
from unlearn.run import main
from unlearn.training.fit import fit

GUIDE = {"forget": {"guide": Guide(pool=3)}, "retain": {"keep": GlobalPreservation(pool=6)}}
CASES: dict[str, dict[str, dict[str, Objective]]] = {
    "guide": GUIDE,
    "paper": {"forget": {"guide": Guide(pool=None)}, "retain": {"keep": GlobalPreservation(pool=None)}},
    "average": {"forget": {"guide": Guide(target="average", pool=3)}, "retain": {"ewc": EWC(items=2)}},
    "sugar": {"forget": {"sugar": Sugar(pool=2, surrogate_steps=2)}, "retain": {"ewc": EWC(items=2)}},
}


def run(module: Any, folder: Path, **settings: Any) -> dict[str, Tensor]:
    given = {"accelerator": "cpu", "precision": "64-true", "tensorboard": False, **settings}
    fit(module, Trainer(**given), folder, "t")
    return {name: value.detach().clone() for name, value in module.model.named_parameters()}


@pytest.mark.parametrize("kinds", [["to_rgb"], ["style_convolution", "affine"]], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_two_steps_move_what_may_move_and_leave_the_rest_bit_identical(
    name: str, kinds: list[str], tmp_path: Path
) -> None:
    """With weight decay and momentum, which reach no tensor that is out of scope; nor is the target touched."""
    optim = replace(OPTIM, name="adamw", weight_decay=0.1, ema=0.5)
    module = small_job(CASES[name], tmp_path, scope=ByKind(kinds), optim=optim)
    start = {key: value.detach().clone() for key, value in module.model.named_parameters()}
    may_move = set(ByKind(kinds).select(module.model))
    after = run(module, tmp_path / "run")
    assert {key for key in start if not torch.equal(start[key], after[key])} == may_move
    assert all(torch.equal(value, start[key]) for key, value in module.common.reference().named_parameters())


@pytest.mark.parametrize("kind", ["stylegan2", "dcgan"])
@pytest.mark.parametrize(
    ("scope", "combine"),
    [
        (SYNTHESIS, PCGrad()),
        (SYNTHESIS, OneSided()),
        (SYNTHESIS, GRU()),
        (Lora(rank=2, kinds=["synthesis"]), None),
        (Lora(rank=2, kinds=["synthesis"]), PCGrad()),
        (Saliency(share=0.3, include=["synthesis", "main"]), None),
    ],
    ids=["pcgrad", "one_sided", "gru", "lora", "lora_pcgrad", "saliency"],
)
def test_guide_with_surgery_adapters_and_masks(scope: Scope, combine: Any, kind: str, tmp_path: Path) -> None:
    module = small_job(GUIDE, tmp_path, kind, scope=scope, combine=combine)
    start = {key: value.detach().clone() for key, value in module.model.named_parameters()}
    after = run(module, tmp_path / "run")
    chosen = set(scope.select(module.model))
    moved = {key for key in start if not torch.equal(start[key], after[key])}
    assert moved and moved <= chosen and all(value.isfinite().all() for value in after.values())
    if scope.is_adapter:
        assert all(".lora_" in key for key in moved)


@pytest.mark.parametrize("groups", [{"forget": GUIDE["forget"]}, GUIDE], ids=["alone", "with retain"])
def test_a_loss_that_reaches_nothing_that_moves_is_refused_by_name(groups: Any, tmp_path: Path) -> None:
    """The images of given latents do not pass the mapping network, whatever the other loss reaches."""
    module = small_job(groups, tmp_path, scope=ByKind(["mapping"]))
    with pytest.raises(RecipeError, match=r"forget=guide reaches none of .*: generator\.mapping"):
        run(module, tmp_path / "run")
    assert module.step_count == 0


@pytest.mark.parametrize("kind", ["stylegan2", "dcgan"])
def test_an_adapter_is_the_target_when_off_and_is_merged(kind: str, tmp_path: Path) -> None:
    """The images do not change when the update is merged, nor those of the target while the adapter moves."""
    scope = Lora(rank=2, alpha=6, kinds=["synthesis"])
    module = small_job(GUIDE, tmp_path, kind, scope=scope)
    model, target = module.model, small_gan(kind)
    w = target.mapping(target.latent(torch.arange(3), module.common.randomness))
    before = target.synthesis(w)
    torch.testing.assert_close(model.synthesis(w), before)  # B begins at 0
    run(module, tmp_path / "run")
    after = model.synthesis(w).detach()
    torch.testing.assert_close(module.common.reference().synthesis(w), before)
    assert float((after - before).detach().abs().max()) > 1e-4
    scope.detach(model, tmp_path)
    torch.testing.assert_close(model.synthesis(w), after)
    assert model.state_dict().keys() == target.state_dict().keys()
    model.save_pretrained(tmp_path)
    again = LatentGenerator.from_pretrained(tmp_path)
    torch.testing.assert_close(again.synthesis(w), after)


@pytest.mark.parametrize("kind", ["stylegan2", "dcgan"])
def test_an_adapter_that_peft_would_not_read_is_not_kept(kind: str) -> None:
    """Refused before anything is attached; a model whose layers peft knows is not."""
    model = small_gan(kind)
    names = list(model.state_dict())
    with pytest.raises(RecipeError, match=r"peft reads no update of generator.*unlearn.delta save"):
        Lora(rank=2, keep_adapter=True).attach(model, Randomness(0))
    assert list(model.state_dict()) == names


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    """Latents, images and surrogates are read back; the adversary of the retain term warmed up before."""
    groups = {
        "forget": {"guide": Guide(pool=2), "sugar": Sugar(pool=None, surrogate_steps=2)},
        "retain": {"keep": GlobalPreservation(pool=4), "ewc": EWC(items=2)},
    }
    optim = replace(OPTIM, steps=4)
    whole = run(small_job(groups, tmp_path / "w", optim=optim), tmp_path / "whole", checkpoint_every=2)
    stopped = small_job(groups, tmp_path / "c", optim=optim)
    stop_at(stopped, 3)
    with pytest.raises(Interrupted, match="step 3 of 4"):
        run(stopped, tmp_path / "cut", checkpoint_every=2)
    resumed = run(small_job(groups, tmp_path / "c", optim=optim), tmp_path / "cut", checkpoint_every=2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """The control: another batch is another run."""
    runs = [
        run(small_job(GUIDE, tmp_path / str(number), optim=optim), tmp_path / f"run{number}")
        for number, optim in enumerate((OPTIM, replace(OPTIM, accumulate=2), replace(OPTIM, batch=3)))
    ]
    gaps = [max(float((runs[0][key] - other[key]).abs().max()) for key in runs[0]) for other in runs[1:]]
    assert gaps[0] < 1e-6 < 1e-4 < gaps[1]


def test_class_forgetting_and_the_adversary_in_one_run(tmp_path: Path) -> None:
    """Latent projection beside the adversarial loss, whose discriminator warms up; every parameter moves."""
    groups = {
        "forget": {"away": LatentProjection(classifier="digitnet8", label=["7"], samples=60)},
        "retain": {"keep": TrainingLoss(warmup=2)},
    }
    module = small_job(groups, tmp_path, splits=digit_splits())
    start = {key: value.detach().clone() for key, value in module.model.named_parameters()}
    after = run(module, tmp_path / "run")
    assert {key for key in start if not torch.equal(start[key], after[key])} == set(SYNTHESIS.select(module.model))


def test_only_an_adversary_warms_up() -> None:
    """A flow has none: warmup would have no effect."""
    model, stream = small_glow(flow_splits()), Randomness(0)
    assert TrainingLoss().auxiliary(model, lambda: model, "retain", stream) is None
    with pytest.raises(RecipeError, match="no other network"):
        TrainingLoss(warmup=3).auxiliary(model, lambda: model, "retain", stream)
    found = TrainingLoss(warmup=3).auxiliary(small_gan(), lambda: None, "retain", stream)
    assert found is not None and (found.warmup, found.rests) == (3, False)
    with pytest.raises(ValueError, match="warmup"):
        TrainingLoss(warmup=-1)


@pytest.mark.parametrize("method", ["guide", "adapt_then_unlearn", "latent_projection"])
def test_the_goals_of_digits_are_none_of_the_faces(method: str) -> None:
    gates = load(f"gan/{method}_digits").gate
    assert {name: (gate.metric, gate.about, gate.min) for name, gate in gates.items()} == {
        "forgotten": ("sample_share", {}, None),
        "kept": ("frechet_digitnet8", {}, None),
    }


SMALL = f"recipe={ROOT}/tests/toys/recipes/small_gan.yaml"


def test_two_ranks_are_one_rank_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GUIDE on a StyleGAN2 whose identities are images, 3 items a step shared by two; the control is another seed."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("UNLEARN_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    settings = [SMALL, "trainer.precision=64-true", "optim.batch=3", "combine=pcgrad"]
    assert main([*settings, "output=one"]) == 0
    assert main([*settings, "output=other", "seed=1"]) == 0
    done = unlearn_in_a_process(*settings, "output=two", "trainer.devices=2", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    one, two, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["parameters"][0]
        for name in ("one", "two", "other")
    )

    def gap(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
        return max(float((first[name] - second[name]).abs().max()) for name in first)

    assert gap(one, two) < 1e-6 < 1e-4 < gap(one, other)


@pytest.mark.parametrize(
    "setting", ["scope={name: lora, rank: 2, kinds: [synthesis]}", "scope={name: saliency, include: [synthesis]}"]
)
def test_adapters_and_masks_through_the_recipe_alone(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main([SMALL, setting, "optim.steps=2", "output=out"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_gradient_ascent_refuses_a_gan_before_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gradient_ascent.*adversary.*forget="):
        small_job({"forget": {"gradient_ascent": GradientAscent()}}, tmp_path)
