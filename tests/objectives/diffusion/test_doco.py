"""DoCo: both cross-entropies by hand, the networks that each updates, the released rule, the adversary's warm-up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.diffusion import Conditioning, first_step, gradients, moved, small_job, small_model, small_splits
from unlearn.config.schema import Trainer
from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.models.scope import Pattern
from unlearn.objectives.diffusion.doco import DoCo, PatchDiscriminator
from unlearn.objectives.diffusion.noisy_states import AnchorStates
from unlearn.objectives.diffusion.score_preservation import ScorePreservation
from unlearn.training.fit import fit
from unlearn.training.module import UnlearningModule

SMALL: dict[str, Any] = {"states": AnchorStates(items=3, steps=3), "width": 8, "warmup": 0}


def job(
    folder: Path, conditioning: Conditioning = "text", optim: Optim | None = None, **changed: Any
) -> UnlearningModule:
    groups = {"forget": {"doco": DoCo(**{**SMALL, **changed})}, "retain": {"score_preservation": ScorePreservation()}}
    scope = Pattern(include=["attn2"]) if conditioning == "text" else None
    return small_job(groups, folder, conditioning, scope, optim=optim)


def prepared(folder: Path, conditioning: Conditioning = "text", **changed: Any) -> UnlearningModule:
    module = job(folder, conditioning, **changed)
    module.on_fit_start()
    moved(module.model)  # type: ignore[arg-type]
    return module


def estimates(module: UnlearningModule, batch: Any, term: str) -> tuple[Tensor, Tensor]:
    """Estimates of x_0 from the same states: the model's under the concept, the target's under the anchor."""
    found = module.phases[1].groups["forget"]["doco"].states(module.model, batch, module._context(term))  # type: ignore
    kept = module.model.alphas.double()[found.t][:, None, None, None]
    nets = ((module.model, found.condition), (module.common.reference(), found.anchor))
    parts = [(found.x - (1 - kept).sqrt() * net.predict(found.x, found.t, c)) / kept.sqrt() for net, c in nets]
    return parts[0].clamp(-1, 1), parts[1].clamp(-1, 1)


@pytest.mark.parametrize("conditioning", ["class", "text"])
def test_both_losses_are_cross_entropies_of_patches(conditioning: Conditioning, tmp_path: Path) -> None:
    """D = 1 on the concept and 0 on the anchor for D; 0 on the concept for the model, on what D has seen."""
    module = prepared(tmp_path, conditioning)
    batch, net = first_step(module)["forget"][0], module.phases[0].network
    concept, anchor = estimates(module, batch, "forget/doco_discriminator")
    own = module.phases[0].groups["forget"]["doco_discriminator"]
    found = own(module.model, batch, module._context("forget/doco_discriminator"))
    logits = [net(part) for part in (concept, anchor)]  # type: ignore[misc]
    entropy = F.binary_cross_entropy_with_logits
    for row in range(len(batch["id"])):
        right = entropy(logits[0][row], torch.ones_like(logits[0][row]))
        right = right + entropy(logits[1][row], torch.zeros_like(logits[1][row]))
        assert found.values[row].item() == pytest.approx(right.item(), abs=1e-9)
    assert len(module.common.shared) == 1
    main = module.phases[1].groups["forget"]["doco"](module.model, batch, module._context("forget/doco"))
    wanted = F.softplus(logits[0]).mean(dim=(1, 2, 3))
    assert torch.allclose(main.values, wanted, atol=1e-9) and module.common.shared == {}
    assert not torch.allclose(main.values, F.softplus(-logits[0]).mean(dim=(1, 2, 3)), atol=1e-4)  # the wrong side
    share = (logits[0] < 0).double().mean(dim=(1, 2, 3))
    assert torch.equal(main.diagnostics["taken_for_anchor"], share)


def test_an_items_value_does_not_depend_on_its_company(tmp_path: Path) -> None:
    module = prepared(tmp_path)
    batch = first_step(module)["forget"][0]
    for phase, name in enumerate(("doco_discriminator", "doco")):
        term, context = module.phases[phase].groups["forget"][name], module._context(f"forget/{name}")
        whole = term(module.model, batch, context).values
        module.common.shared.clear()
        alone = [
            term(module.model, {key: value[row : row + 1] for key, value in batch.items()}, context).values
            for row in range(len(batch["id"]))
        ]
        module.common.shared.clear()
        assert torch.allclose(whole, torch.cat(alone), atol=1e-9)


@pytest.mark.parametrize("conditioning", ["class", "text"])
def test_each_network_moves_by_its_own_loss_alone(conditioning: Conditioning, tmp_path: Path) -> None:
    module = prepared(tmp_path, conditioning)
    batches = first_step(module)
    own = gradients(module, 0, batches)
    assert all(bool(g.any()) and bool(g.isfinite().all()) for g in own.values())
    assert all(parameter.grad is None for parameter in module.model.parameters())
    held = {name: g.clone() for name, g in own.items()}
    main = gradients(module, 1, batches)
    assert all(bool(g.any()) and bool(g.isfinite().all()) for g in main.values())
    assert all(torch.equal(p.grad, held[name]) for name, p in module.phases[0].parameters.items())


def run(module: UnlearningModule, folder: Path) -> None:
    fit(module, Trainer(accelerator="cpu", precision="64-true", tensorboard=False), folder, "test")


def test_two_steps_move_what_may_move_and_nothing_else(tmp_path: Path) -> None:
    module = job(tmp_path)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run(module, tmp_path)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
    assert changed >= {f"auxiliary_networks.0.{name}" for name, _ in module.phases[0].network.named_parameters()}  # type: ignore
    assert {n.removeprefix("model.") for n in changed if n.startswith("model.")} == set(module.primary.parameters)
    target = small_model("text").state_dict()
    assert all(torch.equal(value, target[name]) for name, value in module.common.reference().state_dict().items())


CHANGES: list[dict[str, Any]] = [
    {"states": AnchorStates(items=2, steps=3)},
    {"states": AnchorStates(items=3, steps=2)},
    {"states": AnchorStates(items=3, steps=3, guidance=1.0)},
    {"width": 16},
    {"discriminator_lr": 1e-2},
    {"discriminator_lr": None},
    {"warmup": 2},
    {"weight": 0.0},
]


@pytest.mark.parametrize("changed", CHANGES, ids=lambda one: "-".join(f"{k}={v}" for k, v in one.items()))
def test_a_setting_changes_the_steps(changed: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for number, settings in enumerate(({}, {}, changed)):
        module = job(tmp_path / str(number), **settings)
        run(module, tmp_path / f"run{number}")
        ends.append(torch.cat([p.detach().reshape(-1) for p in module.primary.parameters.values()]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_the_discriminator_learns_before_the_model_moves(tmp_path: Path) -> None:
    """60 steps alone tell concept and anchor apart; nearly without a rate it does not."""
    found = {}
    for rate in (1e-2, 1e-9):
        module = job(tmp_path / str(rate), "class", Optim(steps=1, batch=8, lr=1e-9), warmup=60, discriminator_lr=rate)
        module.common.reference().load_state_dict(moved(small_model("class"), 0.2).state_dict())
        module.log_every = 1
        rights: list[float] = []
        module.on_train_batch_end = lambda *_, rights=rights, module=module: rights.append(  # type: ignore
            module.row["discriminator/forget/right"]
        )
        run(module, tmp_path / f"run{rate}")
        found[rate] = sum(rights[-5:]) / 5
        assert len(rights) == 61 and module.step_count == 1
    assert found[1e-2] > 0.75 and found[1e-2] > found[1e-9] + 0.15


def test_the_discriminator_fits_every_size(tmp_path: Path) -> None:
    """From 8 x 8 to 64 x 64 it ends in 3 x 3 patches, as released for latents of 64; widths double up to 8 times."""
    for side, widths in ((8, [8, 1]), (16, [8, 16, 1]), (64, [8, 16, 32, 64, 1])):
        net = PatchDiscriminator((3, side, side), 8, Randomness(0))
        assert net(torch.zeros(2, 3, side, side)).shape == (2, 1, 3, 3)
        assert [m.out_channels for m in net.modules() if isinstance(m, torch.nn.Conv2d)] == widths
    first, second, other = (PatchDiscriminator((1, 8, 8), 8, Randomness(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("settings", [{"width": 12}, {"warmup": -1}, {"discriminator_lr": 0.0}])
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DoCo(**settings)


def test_items_without_an_anchor_are_refused(tmp_path: Path) -> None:
    module = job(tmp_path)
    retain = small_splits("text")["retain"]
    module.common = replace(module.common, splits={"forget": retain, "retain": retain})
    module.cache_reference_in(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"Type data\.concepts"):
        module.on_fit_start()
