"""SFD: the losses against their unsimplified forms, and which loss trains which network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import (
    Conditioning,
    first_step,
    gradients,
    moved,
    small_job,
    small_model,
)
from unlearn.config.schema import Trainer
from unlearn.core.errors import RecipeError
from unlearn.models.lora import Lora
from unlearn.models.scope import Pattern, Scope
from unlearn.objectives.diffusion.sfd import SFD, diff_instruct_loss, sid_loss
from unlearn.training.fit import fit
from unlearn.training.module import UnlearningModule


def job(
    folder: Path, conditioning: Conditioning = "class", scope: Scope | None = None, teacher: Any = None, **both: Any
) -> UnlearningModule:
    """Return a job whose three networks have come apart."""
    forget, retain = SFD(**both), SFD(**{**both, "override": None, "weight": 1.0})
    module = small_job({"forget": {"sfd": forget}, "retain": {"sfd": retain}}, folder, conditioning, scope, teacher)
    part(module)
    module.on_fit_start()
    return module


def part(module: UnlearningModule) -> None:
    with torch.no_grad():
        for seed, phase in enumerate(module.phases):
            for index, parameter in enumerate(phase.parameters.values()):
                generator = torch.Generator().manual_seed(100 * seed + index)
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def unsimplified(
    module: UnlearningModule, group: str, batch: Any, alpha: float, other: Any, still: bool = False
) -> Tensor:
    """SiD's two losses of scores s = -eps / sigma, weighted and combined as in the paper: w (L2 - alpha L1).

    L1 = |s_phi - s_psi|^2 is the distance that is to vanish; L2 = (s_phi - s_psi) . (s_phi - s(x_t | x_0)) has the same
    mean where s_psi is right. w = sigma^4 / (a^2 omega), and here over the number of values.
    """
    model, fake, teacher = module.model, module.phases[0].network, module._context(f"{group}/sfd").teacher()
    draw, ids = module._context(f"{group}/sfd").randomness, batch["id"]
    condition = model.condition(batch)
    start = torch.full((len(ids),), 440)
    kept = model.alphas.double()[start][:, None, None, None]
    z = (1 - kept).sqrt() * model.noise(ids, draw)
    x0 = (z - (1 - kept).sqrt() * model.predict(z, start, condition)) / kept.sqrt()
    t = 38 + draw.child("t").integers(ids, 712 - 38)
    noise = draw.child("noise").normal(ids, tuple(x0.shape[1:]), torch.float64)
    kept = model.alphas.double()[t][:, None, None, None]
    sigma, scale = (1 - kept).sqrt(), kept.sqrt()
    x = scale * x0 + sigma * noise
    seen = x.detach() if still else x
    s_phi, s_psi = (-net.predict(seen, t, c) / sigma for net, c in ((teacher, other), (fake, condition)))
    conditional = -(x - scale * x0) / sigma**2
    first = (s_phi - s_psi).square()
    second = (s_phi - s_psi) * (s_phi - conditional)
    omega = ((x + sigma**2 * s_phi) / scale - x0).abs().mean(dim=(1, 2, 3), keepdim=True).detach()
    return (sigma**4 / scale**2 / omega * (second - alpha * first)).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("conditioning", ["class", "text", "dit"])
@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_the_loss_is_that_of_the_unsimplified_form(conditioning: Conditioning, alpha: float, tmp_path: Path) -> None:
    """Value and gradient of retain (c_r, c_r) and of forget (c_f, anchor), redrawn from each term's own stream."""
    module = job(tmp_path, conditioning, alpha=alpha, redraw=True)
    batches = first_step(module)
    for group, form in (("forget", "anchor"), ("retain", "")):
        batch, context = batches[group][0], module._context(f"{group}/sfd")
        other = module.model.condition(context.batch(group, batch["id"], form))
        found = module.phases[1].groups[group]["sfd"](module.model, batch, context).values
        right, wrong, cut = (
            unsimplified(module, group, batch, a, c, still)
            for a, c, still in (
                (alpha, other, False),
                (alpha - 0.5, other, False),
                (alpha, other, True),
            )
        )
        assert torch.allclose(found, right, atol=1e-9)
        assert not torch.allclose(found, wrong, atol=1e-4)
        moving = list(module.model.parameters())
        grads = [torch.autograd.grad(loss.sum(), moving, allow_unused=True) for loss in (found, right, wrong, cut)]
        parts = [torch.cat([torch.zeros(1) if g is None else g.reshape(-1) for g in one]).double() for one in grads]
        assert torch.allclose(parts[0], parts[1], atol=1e-9) and parts[0].abs().max() > 1e-4
        for control in parts[2:]:  # another alpha, or no gradient through x_t into both scores
            assert (parts[0] - control).abs().max() > 0.05 * parts[0].abs().max()


def test_equal_scores_leave_nothing_to_do(tmp_path: Path) -> None:
    """Where the fake score is the teacher and both have the same condition, value and gradient are 0."""
    module = small_job({"forget": {"sfd": SFD()}, "retain": {"sfd": SFD()}}, tmp_path)
    module.on_fit_start()
    batches = first_step(module)
    for group, size in (("retain", 0.0), ("forget", 1e-3)):
        module.primary.groups = {group: {"sfd": SFD()}}
        found = max(float(g.abs().max()) for g in gradients(module, 1, batches).values())
        assert found < 1e-12 if size == 0 else found > size  # the control: another condition pulls


def test_diff_instruct_has_the_difference_of_the_scores_as_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise, a, b = (torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    x0.requires_grad_()
    x = 0.8 * x0 + 0.6 * noise

    def scores() -> tuple[Tensor, Tensor]:
        return (x - 0.6 * torch.tanh(a * x)) / 0.8, (x - 0.6 * torch.tanh(b * x)) / 0.8

    f_phi, f_psi = scores()
    (found,) = torch.autograd.grad(diff_instruct_loss(x0, f_phi, f_psi).sum(), x0, retain_graph=True)
    assert torch.allclose(found, (f_psi - f_phi).detach() / 16)
    (other,) = torch.autograd.grad(sid_loss(x0, f_phi, f_psi, 1.0).sum(), x0, retain_graph=True)
    assert not torch.allclose(found, other, atol=1e-3)


@pytest.mark.parametrize("loss", ["sid", "diff_instruct"])
@pytest.mark.parametrize("conditioning", ["class", "text", "dit"])
def test_each_network_moves_by_its_own_losses_alone(conditioning: Conditioning, loss: str, tmp_path: Path) -> None:
    module = job(tmp_path, conditioning, loss=loss, override="anchor")
    batches = first_step(module)
    own = gradients(module, 0, batches)
    assert all(bool(g.any()) and bool(g.isfinite().all()) for g in own.values())
    assert all(parameter.grad is None for parameter in module.model.parameters())
    assert {name.split(".")[1] for name in own} == {"denoiser"}
    held = {name: g.clone() for name, g in own.items()}
    main = gradients(module, 1, batches)
    assert all(bool(g.any()) and bool(g.isfinite().all()) for g in main.values())
    assert all(torch.equal(p.grad, held[name]) for name, p in module.phases[0].parameters.items())  # not added to
    assert all(parameter.grad is None for parameter in module.common.reference().parameters())


def run(module: UnlearningModule, folder: Path) -> None:
    trainer = Trainer(accelerator="cpu", precision="64-true", tensorboard=False)
    fit(module, trainer, folder, "test")


def test_two_steps_move_what_may_move_and_nothing_else(tmp_path: Path) -> None:
    module = job(tmp_path / "values", "text", Pattern(include=["attn2"]), override="anchor")
    fake, teacher = module.phases[0].network, module.common.reference()
    assert fake is not None and fake is not teacher
    for part, shared in (("text", True), ("denoiser", False)):
        pairs = zip(fake.get_submodule(part).parameters(), teacher.get_submodule(part).parameters(), strict=True)
        assert all((a is b) == shared for a, b in pairs)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    target = {name: value.clone() for name, value in module.common.reference().state_dict().items()}
    run(module, tmp_path)
    after = module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if name.startswith("model.")} == {f"model.{n}" for n in module.primary.parameters}
    assert {name for name in changed if "text." in name} == set()
    assert any(name.startswith("auxiliary_networks.0.denoiser") for name in changed)
    assert all(torch.equal(value, target[name]) for name, value in module.common.reference().state_dict().items())


def test_a_generator_that_is_distilled_asks_its_own_teacher(tmp_path: Path) -> None:
    """The fake score begins as the teacher, which is not the target, and the loss asks the teacher."""
    teacher = moved(small_model("class"), 0.1)
    module = small_job({"retain": {"sfd": SFD()}}, tmp_path, teacher=teacher)
    module.on_fit_start()
    fake = module.phases[0].network
    assert all(torch.equal(value, fake.state_dict()[name]) for name, value in teacher.state_dict().items())  # type: ignore
    found = gradients(module, 1, first_step(module))
    assert max(float(g.abs().max()) for g in found.values()) < 1e-12  # equal scores, though the model is another
    other = small_job({"retain": {"sfd": SFD()}}, tmp_path / "other")
    part(other)
    other.on_fit_start()
    assert max(float(g.abs().max()) for g in gradients(other, 1, first_step(other)).values()) > 1e-4


def test_an_adapter_takes_the_model_without_it_for_the_teacher(tmp_path: Path) -> None:
    """Values and gradients of a copy; the fake score has an adapter of its own and shares the weights below."""
    scope = Lora(rank=2, include=["to_q", "conv1"])
    module = job(tmp_path / "a", scope=scope, override="anchor")
    apart = job(tmp_path / "b", scope=scope, override="anchor", teacher=small_model("class"))
    fake, full = module.phases[0], apart.phases[0]
    assert all("lora" in name for name in fake.parameters) and len(fake.parameters) < len(full.parameters)
    assert fake.network is not None and all(
        ".lora_" in n for n, p in fake.network.named_parameters() if p.requires_grad
    )
    mine, own = dict(module.model.named_parameters()), dict(fake.network.named_parameters())
    shared = [name for name in mine if mine[name] is own[name]]
    assert set(shared) == {name for name in mine if ".lora_" not in name}
    with torch.no_grad():  # the two fake scores, made equal
        for name, parameter in full.network.named_parameters():  # type: ignore[union-attr]
            parameter.copy_(dict(small_model("class").named_parameters())[name])
        for parameter in fake.parameters.values():
            parameter.zero_()
    batches = first_step(module)
    found, right = gradients(module, 1, batches), gradients(apart, 1, batches)
    assert all(torch.allclose(found[name], right[name], atol=1e-10) for name in right)
    assert max(float(g.abs().max()) for g in right.values()) > 1e-6


CHANGES: list[dict[str, Any]] = [
    {"alpha": 1.0},
    {"t_min": 200},
    {"t_max": 300},
    {"guidance": 2.0},
    {"drop": 0.7},
    {"override": "random"},
    {"override": "itself"},
    {"override": "likeliest"},
    {"override": "random", "overrides": ["1"]},
    {"loss": "diff_instruct"},
    {"fake_weight": 0.2},
    {"fake_lr": 1e-2},
    {"warmup": 2},
    {"weight": 0.1},
    {"one_step": 300},
    {"redraw": True},
]


@pytest.mark.parametrize("changed", CHANGES, ids=lambda one: "-".join(f"{k}={v}" for k, v in one.items()))
def test_a_setting_changes_the_steps(changed: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for number, settings in enumerate(({}, {}, changed)):
        module = job(tmp_path / f"{number}", **settings)
        run(module, tmp_path / f"run{number}")
        ends.append(torch.cat([p.detach().reshape(-1) for p in module.primary.parameters.values()]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_the_generator_runs_once_a_step_for_both_networks(tmp_path: Path) -> None:
    for redraw, wanted in ((False, 1), (True, 2)):
        module = job(tmp_path / str(redraw), redraw=redraw, override="anchor")
        counts: list[int] = []
        module.model.denoiser.register_forward_hook(lambda *_, counts=counts: counts.append(1))
        batches = first_step(module)
        for index in (0, 1):
            gradients(module, index, batches)
        assert len(counts) == 2 * wanted  # two groups
        assert module.common.shared == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"t_min": 5, "t_max": 5},
        {"t_min": -1},
        {"drop": 1.0},
        {"fake_lr": 0.0},
        {"guidance": -1.0},
        {"fake_weight": -1.0},
        {"warmup": -1},
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SFD(**settings)


def test_timesteps_beyond_the_models_are_refused() -> None:
    with pytest.raises(RecipeError, match="1000 timesteps"):
        SFD(t_max=1200).attach(small_model("class"))


def test_a_model_that_draws_at_once_keeps_its_timestep(tmp_path: Path) -> None:
    model = small_model("class")
    model.settings.one_step = 500
    SFD(one_step=300).attach(model)
    assert model.settings.one_step == 500
    SFD(one_step=300).attach(other := small_model("class"))
    assert other.settings.one_step == 300
    (tmp_path / "model").mkdir()
    other.save_pretrained(tmp_path / "model")
    assert type(other).from_pretrained(tmp_path / "model").settings.one_step == 300
