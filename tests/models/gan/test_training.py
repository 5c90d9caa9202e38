"""Training of a GAN from scratch: both losses by hand, the lazy penalty, and a short real run through the engine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tests.models.gan.test_gan import INFO, SMALL, small
from tests.toys.flow import digits_splits
from unlearn.config.schema import Pretrain, Trainer
from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.experiment.pretraining import find_or_train
from unlearn.models.capabilities import TrainsAgainst
from unlearn.models.gan.config import StyleGAN2
from unlearn.models.gan.wrapper import LAZY, LAZY_PATHS, LatentGenerator
from unlearn.training.build import training_module
from unlearn.training.fit import fit

STREAM = Randomness(0, "test")
OPTIM = Optim(steps=6, batch=8, lr=2e-3, betas=(0.0, 0.99), ema=0.9)


def batch() -> dict[str, Tensor]:
    split = digits_splits()["retain"]
    return split.batch(split.ids[:4])


def test_the_losses_by_hand() -> None:
    """-log s(D(x)) - log(1 - s(D(G(z)))) of the discriminator, -log s(D(G(z))) of the generator, s the sigmoid."""
    model = small("stylegan2").double()
    judge = model.adversary(STREAM)
    stream, items = STREAM.at(1), batch()  # no penalty at step 1
    z, noise = model.latent(items["id"], stream), model.noises(items["id"], stream)
    drawn = model.synthesis(model.mapping(z), noise)
    real = items["image"].double() / 8 - 1
    wanted = -logsigmoid(judge(real)) - torch.log(1 - torch.sigmoid(judge(drawn)))
    torch.testing.assert_close(model.adversary_loss(judge, items, stream)[0], wanted)
    loss, lengths = model.adversarial_loss(judge, items, stream)
    torch.testing.assert_close(loss, -logsigmoid(judge(drawn)))
    assert lengths is None


def test_the_penalty_is_lazy() -> None:
    """At steps 0, 16, ...: 16 gamma / 2 times the squared gradient of D at the real images."""
    model = small("stylegan2").double()
    model.r1 = 3.0
    judge, items = model.adversary(STREAM), batch()
    real = model.pixels(items).requires_grad_()
    (slope,) = torch.autograd.grad(judge(real).sum(), real)
    penalty = LAZY * 3.0 / 2 * slope.square().sum(dim=(1, 2, 3))
    for step in (0, 1, LAZY, LAZY + 1):
        with_it = model.adversary_loss(judge, items, STREAM.at(step))[0]
        model.r1 = 0.0
        without = model.adversary_loss(judge, items, STREAM.at(step))[0]
        model.r1 = 3.0
        torch.testing.assert_close(with_it - without, penalty * (step % LAZY == 0))
    with torch.no_grad():
        assert torch.isfinite(model.adversary_loss(judge, items, STREAM)[0]).all()


def test_styles_are_mixed_at_a_layer() -> None:
    """The first layers are told one w and the others another; a share of the items is left alone."""
    model = small("stylegan2")
    ids = torch.arange(600)
    w, other = (model.mapping(model.latent(ids, stream)) for stream in (STREAM, STREAM.child("mixing")))
    assert torch.equal(model.mixed(ids, STREAM), w[:, None].expand(-1, model.num_ws, -1))
    model.mixing = 0.7
    ws = model.mixed(ids, STREAM)
    first = (ws == w[:, None]).all(dim=2)
    assert first[:, 0].all() and (first | (ws == other[:, None]).all(dim=2)).all()
    assert not (first[:, 1:] & ~first[:, :-1]).any()  # once told the other w, always told the other
    layers = torch.bincount(first.sum(dim=1), minlength=model.num_ws + 1) / len(ids)
    wanted = torch.tensor([0.0, *[0.7 / (model.num_ws - 1)] * (model.num_ws - 1), 0.3])
    torch.testing.assert_close(layers, wanted, rtol=0, atol=0.06)
    torch.testing.assert_close(model.mixed(ids[5:9], STREAM), ws[5:9], rtol=1e-4, atol=1e-4)


def test_the_penalty_on_paths_by_its_jacobian() -> None:
    """gamma (|J^T y| - a)^2 with J written out, a row a pixel, and its lazy share of the loss, also of one item."""
    model = small("stylegan2").double()
    model.paths = 3.0
    judge, items = model.adversary(STREAM), batch()
    ids, noise = items["id"], model.noises(items["id"], STREAM)
    ws = model.mixed(ids, STREAM).detach().requires_grad_()
    found = model.path_lengths(ids, STREAM, ws, model.synthesis(ws, noise))
    y = STREAM.child("paths").normal(ids, (1, 8, 8), torch.float64)
    lengths = []
    for row in range(len(ids)):
        own = [part[row : row + 1] for part in noise]
        jacobian = torch.autograd.functional.jacobian(lambda w, own=own: model.synthesis(w, own), ws[row : row + 1])
        moved = (jacobian[0, 0, :, :, 0] * y[row, 0, :, :, None, None]).sum(dim=(0, 1)) / 8  # (num_ws, w_dim)
        lengths.append(moved.square().sum(dim=1).mean().sqrt())
    length = torch.stack(lengths)
    torch.testing.assert_close(found, length)
    one = {key: value[:1] for key, value in items.items()}
    for step, a, part in ((0, 0.3, items), (0, 0.3, one), (0, None, items), (1, 0.3, items), (LAZY_PATHS, 0.3, items)):
        model.paths = 3.0
        with_it, seen = model.adversarial_loss(judge, part, STREAM.at(step), length=a)
        model.paths = 0.0
        without, nothing = model.adversarial_loss(judge, part, STREAM.at(step), length=a)
        lazy = step % LAZY_PATHS == 0
        assert nothing is None and (seen is not None) == lazy
        assert ((with_it - without) > 0).all() == (lazy and a is not None)
        if step == 0:
            rows = length[: len(part["id"])]
            wanted = 0 * rows if a is None else LAZY_PATHS * 3 * (rows - a).square()
            torch.testing.assert_close(with_it - without, wanted)
            torch.testing.assert_close(seen, rows)


def test_the_penalty_on_paths_reaches_a_synthesis_network_that_moves_alone() -> None:
    model = small("stylegan2")
    model.paths = 2.0
    for name in model.parameter_kinds()["mapping"]:
        model.get_parameter(name).requires_grad_(False)
    loss, _ = model.adversarial_loss(model.adversary(STREAM), batch(), STREAM, length=0.3)
    loss.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_each_loss_reaches_one_network() -> None:
    model, items = small("stylegan2"), batch()
    judge = model.adversary(STREAM)
    model.adversary_loss(judge, items, STREAM)[0].sum().backward()
    assert all(p.grad is not None for p in judge.parameters()) and all(p.grad is None for p in model.parameters())
    judge.zero_grad()
    judge.requires_grad_(False)
    model.adversarial_loss(judge, items, STREAM)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and all(p.grad is None for p in judge.parameters())


def test_what_is_not_trained_is_refused() -> None:
    assert isinstance(small("stylegan2"), TrainsAgainst)
    with pytest.raises(RecipeError, match="no discriminator"):
        small("dcgan").adversary(STREAM)
    with pytest.raises(RecipeError, match="known only to its adversary"):
        small("stylegan2").training_loss(batch(), STREAM)
    with pytest.raises(ValueError, match="r1 is -1"):
        StyleGAN2(r1=-1)
    with pytest.raises(ValueError, match="mixing is 2"):
        StyleGAN2(mixing=2)


def test_the_penalty_has_one_default() -> None:
    assert LatentGenerator(small("stylegan2").generator).r1 == StyleGAN2().r1 > 0  # type: ignore[arg-type]


def trained(folder: Path, steps: int = 6, **optim: object) -> tuple[LatentGenerator, torch.nn.Module]:
    model = StyleGAN2(**SMALL).build(INFO, STREAM)
    module = training_module(model, replace(OPTIM, steps=steps, **optim), digits_splits()["retain"], 0)
    (judge,) = module.auxiliary_networks
    fit(module, Trainer(accelerator="cpu", precision="32", tensorboard=False), folder, "test")
    return model, judge


def test_both_networks_move_and_the_same_run_gives_the_same(tmp_path: Path) -> None:
    model, judge = trained(tmp_path / "a")
    fresh = StyleGAN2(**SMALL).build(INFO, STREAM)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all() and not torch.equal(parameter, fresh.get_parameter(name)), name
    same, same_judge = trained(tmp_path / "b")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(judge.parameters(), same_judge.parameters(), strict=True))
    last, _ = trained(tmp_path / "c", ema=None)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), last.parameters(), strict=True))


def test_a_target_is_trained_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    config, pretrain = StyleGAN2(**SMALL, mixing=0.5, paths=2.0), Pretrain(optim=OPTIM, seed=0)
    split, trainer = digits_splits()["retain"], Trainer(accelerator="cpu", tensorboard=False)
    first = find_or_train(config, pretrain, trainer, split, "target")
    again = find_or_train(config, pretrain, trainer, split, "target")
    assert (first.origin, again.origin) == ("trained", "cached") and first.folder == again.folder
    model = config.load(first.folder)
    assert (model.r1, model.mixing, model.paths) == (config.r1, config.mixing, config.paths) and not model.fresh
    z = model.latent(torch.arange(4096), Randomness(0, "w_avg"))
    torch.testing.assert_close(model.w_avg, model.mapping(z).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_training_brings_the_samples_nearer_to_the_data(tmp_path: Path) -> None:
    """The mean image of samples, after a minute's share of steps, is nearer to that of the digits than before."""
    split = digits_splits()["retain"]
    ids = torch.arange(256)

    def gap(model: LatentGenerator) -> float:
        drawn = model.sample(ids, STREAM)["image"].float().mean(dim=0)
        return (drawn - split.batch(split.ids[:500])["image"].float().mean(dim=0)).abs().mean().item()

    model, _ = trained(tmp_path, steps=150, batch=16, lr=5e-3)
    assert gap(model) < 0.6 * gap(StyleGAN2(**SMALL).build(INFO, STREAM))
