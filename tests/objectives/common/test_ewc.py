"""Consolidation: the penalty in closed form, and the Fisher information where it is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.diffusion import Bench as Diffusers
from tests.toys.diffusion import small_model
from tests.toys.flow_objectives import PixelGaussian, context, pixel_splits
from tests.toys.gan import Bench
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.gan.latents import latents_of_seeds
from unlearn.objectives.common.ewc import EWC, fisher

SPLITS = pixel_splits([13], [9, 10])


def test_fisher_and_penalty_of_a_gaussian_in_closed_form() -> None:
    """With z = (x + 1/2 - 10) / 2 = -1/4, 1/4: d log p / d mean = z / 2, d log p / d log scale = z^2 - 1.

    F = (1/64, (15/16)^2), so at mean + 3 and log scale - 1/2 the penalty of lambda 0.2 is 0.1 (9 / 64 + 225 / 1024).
    """
    target, model = PixelGaussian(), PixelGaussian()
    here = replace(context(SPLITS, reference=target), split="retain")
    term = EWC(strength=0.2)
    term.prepare(model, here)
    assert float(here.state["fisher"]["mean"]) == pytest.approx(1 / 64)
    assert float(here.state["fisher"]["log_scale"]) == pytest.approx((15 / 16) ** 2)
    assert term.penalty(dict(model.named_parameters()), here).item() == 0
    with torch.no_grad():
        model.mean.add_(3.0)
        model.log_scale.sub_(0.5)
    penalty = term.penalty(dict(model.named_parameters()), here)
    assert penalty.item() == pytest.approx(0.1 * (9 / 64 + 225 / 1024))
    penalty.backward()
    assert model.mean.grad.item() == pytest.approx(0.2 * 3 / 64)
    assert term.penalty({"mean": model.mean}, here).item() == pytest.approx(0.1 * 9 / 64)


def test_only_some_items_count() -> None:
    """One item of two: z = 1/4 and z = -1/4 give the same square, another grey another one."""
    model, splits = PixelGaussian(), pixel_splits([13], [9, 30])
    here = replace(context(splits, reference=PixelGaussian()), split="retain")
    parameters = dict(model.named_parameters())
    both, one = fisher(model, parameters, here, 2), fisher(model, parameters, here, 1)
    z = torch.tensor([9.5, 30.5], dtype=torch.float64).sub(10).div(2)
    assert float(both["mean"]) == pytest.approx(float(z.square().mean()) / 4)
    assert float(one["mean"]) in (pytest.approx(float(z[0] ** 2) / 4), pytest.approx(float(z[1] ** 2) / 4))


def test_the_fisher_of_a_generator_is_that_of_a_gaussian_around_its_image(tmp_path: Path) -> None:
    """F = mean over z of the column norms of the Jacobian; for the last bias, the number of pixels, known exactly."""
    bench = Bench(tmp_path, EWC(items=6, draws=200), split="retain")
    model, found = bench.target, bench.state["fisher"]
    name = "generator.synthesis.b8.torgb.bias"
    parameter = model.get_parameter(name)
    ids = bench.splits["retain"].ids
    z = model.latent(ids, Randomness(0, "fisher"))

    def image(value: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(_Drawn(model), {f"model.{name}": value}, (z,))

    jacobian = torch.autograd.functional.jacobian(image, parameter.detach())
    wanted = jacobian.square().flatten(1, -2).sum(dim=1).mean(dim=0)
    torch.testing.assert_close(found[name], wanted, rtol=0.15, atol=0)
    assert set(found) == {key for key, p in bench.model.named_parameters() if p.requires_grad}
    assert all((value >= 0).all() for value in found.values())


def test_the_fisher_of_latents_near_the_forget_items(tmp_path: Path) -> None:
    """Numbers 0, 1, ... take the identities in turn, moved towards a drawn w by less than reach a layer."""
    term = EWC(items=4, draws=2, latents="near", reach=0.3)
    bench = Bench(tmp_path, term, split="retain")
    model, found = bench.target, bench.state["fisher"]
    latents = term.near(model, bench.context())
    w = latents_of_seeds(model, bench.splits["forget"].batch(bench.splits["forget"].ids)["seed"])
    away = (latents(torch.arange(40)) - w.repeat(20, 1, 1)).flatten(1)
    lengths = away.norm(dim=1) / model.num_ws**0.5
    assert lengths.min() > 0 and 0.25 < lengths.max() < 0.3
    drawn = model.mapping(model.latent(torch.arange(40), Randomness(0, "ewc/near")))
    to = (drawn[:, None] - w.repeat(20, 1, 1)).flatten(1)
    torch.testing.assert_close(torch.cosine_similarity(away, to), torch.ones(40, dtype=torch.float64))

    stream, total = Randomness(0, "fisher"), 0.0
    name = "generator.synthesis.b4.const"
    parameter = bench.model.get_parameter(name)
    for number in range(4):
        images = bench.model.synthesis(latents(torch.tensor([number])))
        for draw in range(2):
            v = stream.child(f"v {draw}").normal(torch.tensor([number]), tuple(images.shape[1:]), images.dtype)
            (gradient,) = torch.autograd.grad((v * images).sum(), parameter, retain_graph=True)
            total = total + gradient.square() / 8
    torch.testing.assert_close(found[name], total)
    prior = Bench(tmp_path / "prior", EWC(items=4, draws=2), split="retain")
    assert not torch.allclose(found[name], prior.state["fisher"][name])  # the control
    wide = Bench(tmp_path / "wide", EWC(items=4, draws=2, latents="near"), split="retain")
    half = (w - model.w_avg).flatten(1).norm(dim=1) / 2
    far = EWC(latents="near").near(model, wide.context())(torch.arange(40)) - w.repeat(20, 1, 1)
    assert (far.flatten(1).norm(dim=1) < half.repeat(20)).all()


def test_latents_near_items_are_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="reach"):
        EWC(reach=1.0)
    here = replace(context(SPLITS, reference=PixelGaussian()), split="retain")
    with pytest.raises(RecipeError, match="Drop latents"):
        EWC(latents="near").prepare(PixelGaussian(), here)


class _Drawn(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.model.synthesis(self.model.mapping(z))


def test_a_diffusion_model_goes_by_its_training_loss(tmp_path: Path) -> None:
    bench = Diffusers(tmp_path, EWC(items=2), split="retain")
    stream = Randomness(0, "fisher")
    ids = bench.splits["retain"].ids
    chosen = ids[stream.permutation(len(ids))[:2]]
    total = 0.0
    model = small_model("text")
    name, parameter = next(iter(model.named_parameters()))
    for item in chosen:
        loss = model.training_loss(bench.splits["retain"].batch(item[None]), stream).sum()
        (gradient,) = torch.autograd.grad(loss, parameter)
        total = total + gradient.square() / 2
    torch.testing.assert_close(bench.state["fisher"][name], total)


def test_what_matters_is_held_tighter(tmp_path: Path) -> None:
    """Moved by 1, an entry costs strength / 2 F, and is pulled back with strength F: brute force over all entries."""
    bench = Bench(tmp_path, EWC(strength=3.0, items=4), split="retain")
    moving = {key: p for key, p in bench.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in moving.values():
            parameter += 1
    penalty = bench.objective.penalty(moving, bench.context())  # type: ignore[attr-defined]
    penalty.backward()
    assert penalty.item() == pytest.approx(1.5 * sum(float(square.sum()) for square in bench.state["fisher"].values()))
    for name, parameter in moving.items():
        torch.testing.assert_close(parameter.grad, 3.0 * bench.state["fisher"][name])
    assert bench.state["fisher"]["generator.synthesis.b4.const"].max() > 0


@pytest.mark.parametrize("wrong", [{"strength": 0.0}, {"items": 0}, {"draws": 0}], ids=str)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EWC(**wrong)  # type: ignore[arg-type]


def test_parameters_that_the_target_lacks_are_refused() -> None:
    model = PixelGaussian()
    here = replace(context(SPLITS, reference=model), split="retain")
    with pytest.raises(RecipeError, match="Drop ewc"):
        EWC().prepare(model, here)
