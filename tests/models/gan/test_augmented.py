"""Training a GAN with adaptive augmentation: both losses by hand, the course of p, resume, ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tests.models.gan.test_gan import INFO, SMALL, small
from tests.models.gan.test_training import OPTIM, batch
from tests.toys import ROOT
from tests.toys.command import printed_by_ranks
from tests.toys.flow import digits_splits, stop_at
from unlearn.config.recipe import load
from unlearn.config.schema import Pretrain, Trainer
from unlearn.core.errors import Interrupted, RecipeError
from unlearn.core.randomness import Randomness
from unlearn.experiment.model_store import training_key
from unlearn.models.gan.config import StyleGAN2
from unlearn.models.gan.stylegan2.augment import Augment
from unlearn.models.gan.wrapper import LAZY
from unlearn.training.build import training_module
from unlearn.training.dataloader import StepLoader
from unlearn.training.fit import fit
from unlearn.training.module import UnlearningModule

STREAM = Randomness(0, "test")
OWN = "retain/training_loss_adversary"
FAST = Augment(target=-0.9, speed=100, limit=0.9)
"""p rises by 0.32 at every 4th step of 8 images, unless nearly all of them are held for drawn ones."""


def test_both_losses_see_augmented_images() -> None:
    """Real and drawn images have transforms of their own; the penalty is by the real ones before they are augmented."""
    model = small("stylegan2").double()
    model.augment, model.r1 = Augment(), 3.0
    judge, items, p = model.adversary(STREAM), batch(), 0.7
    ids, own = items["id"], STREAM.at(LAZY)

    def seen(images: Tensor, name: str) -> Tensor:
        return Augment()(images, ids, own.child(name).child("augment"), p)

    real, drawn = model.pixels(items).requires_grad_(), model.drawn(ids, own)
    logits = judge(seen(real, "real"))
    (slope,) = torch.autograd.grad(logits.sum(), real, retain_graph=True)
    wanted = softplus(-logits) + softplus(judge(seen(drawn, "drawn")))
    wanted = wanted + LAZY * 3 / 2 * slope.square().sum(dim=(1, 2, 3))
    loss, found = model.adversary_loss(judge, items, own, p)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found, logits)
    wanted = softplus(-judge(Augment()(drawn, ids, own.child("augment"), p)))
    torch.testing.assert_close(model.adversarial_loss(judge, items, own, p)[0], wanted)
    assert not torch.allclose(model.adversary_loss(judge, items, own)[0], loss)  # the control
    model.augment = None
    plain = model.adversary_loss(judge, items, own)[0]
    assert torch.equal(model.adversary_loss(judge, items, own, p)[0], plain)


def test_gradients_pass_through_the_augmentation() -> None:
    model, items = small("stylegan2"), batch()
    model.augment = Augment()
    judge = model.adversary(STREAM)
    model.adversary_loss(judge, items, STREAM, 0.7)[0].sum().backward()
    assert all(p.grad is not None for p in judge.parameters()) and all(p.grad is None for p in model.parameters())
    judge.requires_grad_(False)
    model.adversarial_loss(judge, items, STREAM, 0.7)[0].sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def module_of(augment: Augment | None, steps: int = 9) -> UnlearningModule:
    model = StyleGAN2(**SMALL, augment=augment).build(INFO, STREAM)
    return training_module(model, replace(OPTIM, steps=steps), digits_splits()["retain"], 0)


def train(module: UnlearningModule, folder: Path, stop: int | None = None) -> list[dict[str, Any]]:
    """Run to the end, or to a step; return the discriminator's state after each step."""
    states = []

    def note(*_: Any) -> None:
        states.append(dict(module.states.get(OWN, {})))

    module.on_train_batch_end = note  # type: ignore[method-assign]
    if stop is not None:
        stop_at(module, stop)
    fit(module, Trainer(accelerator="cpu", tensorboard=False, checkpoint_every=2), folder, "test")
    return states


def weights(module: UnlearningModule) -> list[Tensor]:
    return [value.detach() for phase in module.phases for value in phase.parameters.values()]


def same(first: UnlearningModule, second: UnlearningModule) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_p_follows_the_signs_at_every_fourth_step(tmp_path: Path) -> None:
    """The first step's signs are those of the discriminator as it begins, at the images of that step."""
    module = module_of(FAST)
    states = train(module, tmp_path / "rises")
    assert [state["steps"] for state in states] == [1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [state["images"] for state in states] == [8, 16, 24, 0, 8, 16, 24, 0, 8]
    assert [round(state["p"], 9) for state in states] == [0, 0, 0, 0.32, 0.32, 0.32, 0.32, 0.64, 0.64]
    assert all(abs(state["signs"]) <= state["images"] for state in states)
    states = train(module_of(replace(FAST, target=0.999), steps=4), tmp_path / "falls")
    assert [state["p"] for state in states] == [0] * 4  # the control: the same signs, and another target
    first = module_of(FAST)
    (judge,) = first.auxiliary_networks
    items = first.common.splits["retain"].batch(first_ids(first))
    wanted = judge(first.model.pixels(items)).sign().sum().item()
    assert train(first, tmp_path / "one")[0]["signs"] == wanted


def first_ids(module: UnlearningModule) -> Tensor:
    return StepLoader(module.common.splits, {"retain": OPTIM.batch}, module.common.randomness.child("order")).ids(
        "retain", 0
    )


def test_both_networks_of_a_step_have_one_p() -> None:
    """The discriminator's term leaves p for the generator's, which without it would see images as they are."""
    module, items = module_of(FAST), batch()
    (judge,) = module.auxiliary_networks
    for term in ("retain/training_loss", OWN):
        module.states[term] = {"p": 0.7, "signs": 0.0, "images": 0.0, "steps": 0}

    def value(term: str) -> Tensor:
        return module._objective(term)(module.model, items, module._context(term)).values

    draw = module._context("retain/training_loss").randomness
    plain, wanted = (module.model.adversarial_loss(judge, items, draw, p)[0] for p in (0.0, 0.7))
    torch.testing.assert_close(value("retain/training_loss"), plain)
    own = module._context(OWN).randomness
    torch.testing.assert_close(value(OWN), module.model.adversary_loss(judge, items, own, 0.7)[0])
    torch.testing.assert_close(value("retain/training_loss"), wanted)
    assert not torch.allclose(plain, wanted)


@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(stop: int, tmp_path: Path) -> None:
    """Cut off between two changes of p, before the first one and after it; p and what is counted for it go on."""
    whole, cut, again = module_of(FAST), module_of(FAST), module_of(FAST)
    states = train(whole, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(cut, tmp_path / "cut", stop)
    assert train(again, tmp_path / "cut") == states[stop:]
    assert same(whole, again) and states[-1]["p"] > 0
    plain, slow = module_of(None), module_of(replace(FAST, speed=200))
    train(plain, tmp_path / "plain")
    train(slow, tmp_path / "slow")
    assert not same(whole, plain) and not same(whole, slow) and not same(whole, cut)  # the controls


def test_without_augmentation_training_is_as_it_was(tmp_path: Path) -> None:
    """Where p all but stays at 0 every weight is, bit for bit, as without the setting."""
    plain, still, fast = module_of(None), module_of(replace(FAST, speed=1e12)), module_of(FAST)
    assert train(plain, tmp_path / "plain") == [{}] * 9
    assert 0 < train(still, tmp_path / "still")[-1]["p"] < 1e-10
    train(fast, tmp_path / "fast")
    assert same(plain, still) and not same(plain, fast)


RANK = """
import json, sys, torch, torch.distributed as dist
from unlearn.models.gan.stylegan2.augment import Augment
from unlearn.objectives.base import Context
from unlearn.objectives.common.training_loss import AugmentedAdversaryLoss
from unlearn.core.randomness import Randomness

rank, ranks, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=ranks)
loss = AugmentedAdversaryLoss(augment=Augment(speed=100))
signs = torch.tensor([1, 1, 1, -1, 1, 1, 1, 1, 1], dtype=torch.float64)[rank::ranks]
state = {}
for step in range(4):
    shared = {("signs", "retain"): torch.stack([signs.sum(), signs.new_tensor(len(signs))])}
    context = Context(step, Randomness(0), {}, state, lambda: None, map, torch.device("cpu"), None, "retain",
                      shared=shared if step else {})
    if not step:
        loss.prepare(None, context)
    loss.after_step({}, context)
print(json.dumps(state))
"""


def test_ranks_count_together(tmp_path: Path) -> None:
    """7 of 9 signs are up by 1 in the balance: r_t 0.78 > 0.6; on two ranks, of which one holds 4, as on one."""
    (one,), two = (printed_by_ranks(RANK, ranks, tmp_path) for ranks in (1, 2))
    assert two == [one, one]
    assert one == {"p": 0.27, "signs": 0.0, "images": 0.0, "steps": 0}  # 27 images: the first step had none


def test_a_recipe_sets_it() -> None:
    recipe = ROOT / "tests" / "toys" / "recipes" / "small_gan.yaml"
    assert load(recipe).model.augment is None
    model = load(recipe, ["model.augment={color: false, speed: 1e4}"]).model
    assert model.augment == Augment(color=False, speed=1e4)
    assert model.build(INFO, STREAM).augment == model.augment
    with pytest.raises(RecipeError, match=r"augment\.target is 2\.0"):
        load(recipe, ["model.augment.target=2"])


def test_another_setting_is_another_model() -> None:
    split, pretrain = digits_splits()["retain"], Pretrain(optim=OPTIM)
    keys = [
        training_key(StyleGAN2(**SMALL, augment=augment), pretrain, split)
        for augment in (None, Augment(), Augment(target=0.5))
    ]
    assert len(set(keys)) == 3
