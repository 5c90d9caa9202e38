"""Adapt-then-Unlearn: the three repulsions in closed form, and copies that learn first and then hold still."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.toys import ROOT
from tests.toys.gan import OPTIM, digit_splits, face_splits, first_step, gradients, small_gan, small_job
from unlearn.config.recipe import load
from unlearn.config.schema import Trainer
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.gan.adapt_then_unlearn import AdaptThenUnlearn, Pair
from unlearn.training.fit import fit

KEEP = {"keep": TrainingLoss(warmup=2)}


def copies(*values: tuple[float, float]) -> list[nn.Module]:
    """Pairs whose generators have known parameters."""
    pairs = [nn.Module() for _ in values]
    for pair, (a, b) in zip(pairs, values, strict=True):
        pair.generator = nn.ParameterDict({"a": torch.full((3,), a), "b": torch.full((), b)})
    return pairs


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (1.2 / 13 + 1.2 / 4) / 2),
        ({"repulsion": "negative"}, -1.2 * (13 + 4) / 2),
        ({"repulsion": "exponential", "scale": 100.0}, 50 * (math.exp(-1.2 * 13) + math.exp(-1.2 * 4))),
        ({"distance": "per_tensor"}, (1.2 / 2.5 + 1.2 / 2) / 2),
        ({"distance": "released"}, 1.2 / (2 / 2 * (2.5 + 2))),
        ({"distance": "released", "repulsion": "negative"}, -1.2 * 2**2 / 2 * (2.5 + 2) / 2),
        ({"distance": "released", "repulsion": "exponential", "gamma": 0.8}, 100 * math.exp(-0.8 * 4.5)),
    ],
)
def test_the_repulsions_in_closed_form(settings: dict[str, Any], wanted: float) -> None:
    """theta = (0, 0, 0), 0; copies (2, 2, 2), 1 and (0, 0, 0), 2.

    Squared distances 13 and 4; means over tensors of the mean squares (4 + 1) / 2 and (0 + 4) / 2. The released code
    sums these over both copies and multiplies by 2 / 2.
    """
    theta = {"a": torch.zeros(3, requires_grad=True), "b": torch.zeros((), requires_grad=True)}

    class Here:
        def beside(self) -> list[nn.Module]:
            return copies((2.0, 1.0), (0.0, 2.0))

    found = AdaptThenUnlearn(**{"gamma": 1.2, **settings}).penalty(theta, Here())  # type: ignore[arg-type]
    assert found.item() == pytest.approx(wanted)
    found.backward()
    assert theta["b"].grad is not None and theta["b"].grad > 0  # a step down the gradient goes away from both copies


def job(folder: Path, **settings: Any) -> Any:
    term = AdaptThenUnlearn(**{"adapt_steps": 3, "adapt_items": 2, "models": 2, **settings})
    return small_job({"forget": {"far": term}, "retain": KEEP}, folder, splits=digit_splits())


def test_copies_move_before_the_model_and_then_hold_still(tmp_path: Path) -> None:
    """After the run the copies are where the warm-up left them, and each pair differs from the other."""
    module = job(tmp_path)
    (adapted,) = (phase for phase in module.phases if phase.name == "adapted")
    assert (adapted.first, adapted.is_due(-1), adapted.is_due(0), adapted.is_due(5)) == (-3, True, False, False)
    seen: dict[int, list[torch.Tensor]] = {}

    def keep(*_: Any) -> None:
        seen[module.step_count] = [p.detach().clone() for p in adapted.parameters.values()]

    module.on_train_batch_end = keep
    fit(module, Trainer(accelerator="cpu", precision="64-true", tensorboard=False), tmp_path / "run", "t")
    assert sorted(seen) == [-2, -1, 0, 1, 2]
    assert not any(torch.equal(a, b) for a, b in zip(seen[-2], seen[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[2], strict=True))
    one, two = (dict(pair.generator.named_parameters()) for pair in adapted.network.pairs)
    start = dict(small_gan().named_parameters())
    for name, value in module.model.named_parameters():
        still = not name.startswith("generator.synthesis")
        assert torch.equal(value, start[name]) == still
        assert torch.equal(one[name], start[name]) == still and torch.equal(one[name], two[name]) == still


def test_each_loss_of_a_pair_reaches_one_network(tmp_path: Path) -> None:
    """The gradient of the sum is the two gradients side by side."""
    module = job(tmp_path, models=1)
    module.on_fit_start()
    (index,) = (number for number, phase in enumerate(module.phases) if phase.name == "adapted")
    found = gradients(module, index, first_step(module))
    pair = module.phases[index].network.pairs[0]
    batch = first_step(module)["forget"][0]
    term = "forget/" + next(name for name in module.phases[index].groups["forget"])
    draw = module._context(term).randomness.child("0")
    judge = [p for p in pair.discriminator.parameters()]
    alone = torch.autograd.grad(pair.generator.adversary_loss(pair.discriminator, batch, draw)[0].mean(), judge)
    for (name, _), wanted in zip(pair.discriminator.named_parameters(), alone, strict=True):
        torch.testing.assert_close(found[f"adapted.pairs.0.discriminator.{name}"], wanted)
    moving = {name: p for name, p in pair.generator.named_parameters() if p.requires_grad}
    loss, _ = pair.generator.adversarial_loss(pair.discriminator, batch, draw)
    alone = torch.autograd.grad(loss.mean(), list(moving.values()))
    for name, wanted in zip(moving, alone, strict=True):  # at the target the consolidation has no gradient
        torch.testing.assert_close(found[f"adapted.pairs.0.generator.{name}"], wanted)


def test_the_recipes_repulsion_is_felt(tmp_path: Path) -> None:
    """At delta^2 = 460 its gradient is some 0.1 and more, as that of the training loss; the default's is 2e-4.

    By hand: 2 scale gamma delta exp(-gamma delta^2) and 2 gamma / delta^3.
    """
    recipe = load(ROOT / "recipes" / "gan" / "adapt_then_unlearn_digits.yaml")
    term, keep = recipe.forget["adapt_then_unlearn"], recipe.retain["training_loss"]
    assert isinstance(term, AdaptThenUnlearn) and isinstance(keep, TrainingLoss) and keep.warmup > 0
    delta = math.sqrt(460)
    theta = {"a": torch.zeros(3, requires_grad=True), "b": torch.zeros((), requires_grad=True)}

    class Here:
        def beside(self) -> list[nn.Module]:
            return copies((delta / math.sqrt(3), 0.0))

    sizes = []
    for each in (term, AdaptThenUnlearn()):
        gradients = torch.autograd.grad(each.penalty(theta, Here()), list(theta.values()))  # type: ignore[arg-type]
        sizes.append(float(sum(gradient.square().sum() for gradient in gradients)) ** 0.5)
    wanted = 2 * term.scale * term.gamma * delta * math.exp(-term.gamma * 460), 2 / delta**3
    assert sizes == pytest.approx(wanted, rel=1e-3) and sizes[0] > 0.1 > 1e-3 > sizes[1]


def test_copies_of_a_model_with_penalised_paths_have_no_penalty() -> None:
    model = small_gan()
    model.paths = 2.0
    assert Pair(model, Randomness(0)).generator.paths == 0 and model.paths == 2


def test_consolidation_holds_the_copies(tmp_path: Path) -> None:
    far = []
    for strength in (0.0, 1e4):
        module = job(tmp_path / str(strength), models=1, adapt_ewc=strength, adapt_steps=6)
        fit(module, Trainer(accelerator="cpu", precision="64-true", tensorboard=False), tmp_path / f"r{strength}", "t")
        (adapted,) = (phase.network for phase in module.phases if phase.name == "adapted")
        start = dict(small_gan().named_parameters())
        own = adapted.pairs[0].generator.named_parameters()
        far.append(sum(float((p - start[name]).detach().square().sum()) for name, p in own))
    assert far[1] < 0.9 * far[0]


def test_items_without_images_and_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="have none"):
        AdaptThenUnlearn().check(face_splits(), "forget")
    for name, wrong in {"gamma": 0.0, "scale": 0.0, "models": 0, "adapt_steps": 0, "adapt_ewc": -1.0}.items():
        with pytest.raises(ValueError, match=name):
            AdaptThenUnlearn(**{name: wrong})
    assert OPTIM.steps == 2
