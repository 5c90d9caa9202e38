"""The engine's promises: the same result for every way of cutting the work, exact resume, nothing else moves."""

import csv
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.toys import flow
from tests.toys.flow import digits_splits, run, small_module, stop_at
from unlearn.core.errors import Diverged, Interrupted, RecipeError
from unlearn.core.optim import Optim
from unlearn.data.base import Batch, Selection
from unlearn.models.scope import Pattern, Saliency
from unlearn.objectives.base import Context, Objective, Values
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.objectives.common.weight_anchor import WeightAnchor
from unlearn.objectives.flow.likelihood_ascent import LikelihoodAscent
from unlearn.objectives.flow.taming_retain import TamingRetain
from unlearn.objectives.surgery import GRU, MGDA, OneSided, PCGrad, WeightedSum
from unlearn.training.masks import EntryMasks
from unlearn.training.phase import Phase

COMBINATIONS = [WeightedSum(), PCGrad(), OneSided(), GRU(), MGDA()]


def terms() -> dict[str, Any]:
    """Ascent against a statistic of the batch, a plain mean and a term over parameters: every kind of term."""
    return {
        "forget": {"likelihood_ascent": LikelihoodAscent(weight=0.5)},
        "retain": {
            "taming_retain": TamingRetain(weight=0.5),
            "training_loss": TrainingLoss(weight=0.2),
            "weight_anchor": WeightAnchor(weight=0.1),
        },
    }


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("combine", COMBINATIONS, ids=lambda method: type(method).__name__)
def test_accumulation_changes_nothing(combine: Any, tmp_path: Path) -> None:
    whole = run(small_module(**terms(), combine=combine), tmp_path / "whole")
    optim = Optim(steps=4, batch=16, lr=1e-3, accumulate=3)
    parts = run(small_module(**terms(), combine=combine, optim=optim), tmp_path / "parts")
    other = run(small_module(**terms(), combine=combine, optim=replace(optim, batch=15)), tmp_path / "other")
    assert difference(whole, parts) < 1e-9
    assert difference(whole, other) > 1e-6  # the control: another batch is another run


@pytest.mark.parametrize("combine", COMBINATIONS, ids=lambda method: type(method).__name__)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(combine: Any, tmp_path: Path) -> None:
    optim = Optim(steps=6, batch=16, lr=1e-3, ema=0.9, schedule="cosine")
    whole = run(small_module(**terms(), combine=combine, optim=optim), tmp_path / "whole", checkpoint_every=2)
    stopped = small_module(**terms(), combine=combine, optim=optim)
    stop_at(stopped, 3)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        run(stopped, tmp_path / "cut", checkpoint_every=2)
    resumed = run(small_module(**terms(), combine=combine, optim=optim), tmp_path / "cut", checkpoint_every=2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    rows = list(csv.DictReader((tmp_path / "cut" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0"]


def test_the_gradient_is_that_of_the_written_loss(tmp_path: Path) -> None:
    """One SGD step of rate 1 moves every parameter by minus the gradient of sum_k weight_k * reduce_k."""
    module = small_module(**terms(), optim=Optim(name="sgd", steps=1, batch=16, lr=1.0))
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    feed_batches = run_feed(module)
    loss = torch.zeros((), dtype=torch.float64)
    for group, objectives in module.primary.groups.items():
        for name, objective in objectives.items():
            context = module._context(f"{group}/{name}")
            if isinstance(objective, WeightAnchor):
                loss = loss + objective.weight * objective.penalty(module.primary.parameters, context)
            else:
                values = objective(module.model, feed_batches[group][0], context).values
                weights = torch.ones(len(values), dtype=torch.float64)
                loss = loss + objective.weight * objective.reduce(values, weights)
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in module.model.named_parameters()}
    after = run(module, tmp_path)
    assert max(float((before[n] - wanted[n] - after[n]).abs().max()) for n in wanted) < 1e-8
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-3


def run_feed(module: Any) -> Any:
    from unlearn.training.dataloader import StepLoader

    return StepLoader(module.common.splits, {"forget": 16, "retain": 16}, module.common.randomness.child("order"))[0]


def test_what_is_out_of_scope_stays_bit_identical(tmp_path: Path) -> None:
    splits = digits_splits()
    names = [name for name, _ in small_module(**terms(), splits=splits).model.named_parameters()][:3]
    module = small_module(**terms(), scope=Pattern([re.escape(name) + "$" for name in names]), splits=splits)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    after = run(module, tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(names)


def test_a_saliency_mask_holds_entries_through_weight_decay(tmp_path: Path) -> None:
    from unlearn.config.schema import Trainer
    from unlearn.training.fit import fit

    module = small_module(**terms(), optim=Optim(name="adamw", steps=3, batch=16, lr=1e-2, weight_decay=0.1))
    before = {name: value.detach().clone() for name, value in module.model.named_parameters()}

    masks = EntryMasks(Saliency(share=0.25), lambda _: None)
    fit(module, Trainer(accelerator="cpu", precision="64-true", tensorboard=False), tmp_path, "test", [masks])
    found = masks.masks
    total = sum(mask.numel() for mask in found.values())
    assert sum(int(mask.sum()) for mask in found.values()) == pytest.approx(0.25 * total, rel=0.01)
    for name, parameter in module.model.named_parameters():
        assert torch.equal(parameter[~found[name]], before[name][~found[name]])
    assert any(not torch.equal(p[found[n]], before[n][found[n]]) for n, p in module.model.named_parameters())


def test_one_forget_image_is_a_legal_set(tmp_path: Path) -> None:
    splits = digits_splits(Selection(ids=[0]))
    module = small_module(**terms(), splits=splits, optim=Optim(steps=2, batch=16, accumulate=4))
    assert len(splits["forget"]) == 1
    run(module, tmp_path)


def test_the_average_is_of_the_moving_weights_and_is_the_result(tmp_path: Path) -> None:
    """Decay min(.5, (1 + t) / (10 + t)) at t = 0, 1: weights 1/10 and 2/11 of what stood before."""
    optim = Optim(name="sgd", steps=2, batch=16, lr=1e-2)
    plain = small_module(**terms(), optim=optim)
    start = {name: p.detach().clone() for name, p in plain.model.named_parameters()}
    first = run(small_module(**terms(), optim=replace(optim, steps=1)), tmp_path / "one")
    second = run(plain, tmp_path / "two")
    found = run(small_module(**terms(), optim=replace(optim, ema=0.5)), tmp_path / "average")
    for name, value in start.items():
        average = value.lerp(first[name], 1 - 1 / 10)
        average = average.lerp(second[name], 1 - 2 / 11)
        assert torch.allclose(found[name], average, atol=1e-12)


@dataclass(frozen=True, kw_only=True)
class Explodes(Objective):
    """Becomes infinite at its third step."""

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        loss = model.training_loss(batch, context.randomness)
        return Values(loss * (float("inf") if context.step == 2 else 1.0))


def test_a_gradient_that_is_not_finite_stops_with_the_last_good_state(tmp_path: Path) -> None:
    module = small_module(forget={"explodes": Explodes()}, retain={}, optim=Optim(steps=5, batch=16))
    with pytest.raises(Diverged, match="Step 2"):
        run(module, tmp_path, checkpoint_every=2)
    good = run(
        small_module(forget={"explodes": Explodes()}, retain={}, optim=Optim(steps=2, batch=16)), tmp_path / "good"
    )
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["step"] == 2
    assert all(torch.equal(value, good[name]) for name, value in state["parameters"][0].items())


@dataclass(frozen=True, kw_only=True)
class StopsAt(Objective):
    """Reaches its goal at a given step, and counts in its state."""

    last: int = 3

    def before_step(self, model: Any, context: Context) -> bool:
        context.state["asked"] = context.state.get("asked", 0) + 1
        return context.step == self.last

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        return Values(model.training_loss(batch, context.randomness))


def test_a_term_ends_the_run_when_its_goal_is_reached(tmp_path: Path) -> None:
    module = small_module(forget={"stops": StopsAt()}, retain={}, optim=Optim(steps=9, batch=16))
    run(module, tmp_path)
    assert (module.step_count, module.goal, module.states["forget/stops"]) == (3, "forget/stops", {"asked": 4})


class Adversary(torch.nn.Module):
    """A second network for the test of phases."""

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Linear(64, 1, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Score(Objective):
    """The adversary's mean squared score; ``network`` is its own, kept outside the model that unlearns."""

    network: Any = field(default=None)

    def __call__(self, model: Any, batch: Batch, context: Context) -> Values:
        return Values(self.network.score(batch["image"].double().flatten(1) / 16).squeeze(1) ** 2)


def test_a_second_network_steps_on_its_own_losses_and_does_not_count(tmp_path: Path) -> None:
    module = small_module(**terms(), optim=Optim(steps=4, batch=16))
    adversary = Adversary()
    module.adversary = adversary
    before = adversary.score.weight.detach().clone()
    module.add_phase(
        Phase(
            dict(adversary.named_parameters()),
            {"retain": {"score": Score(network=adversary)}},
            Optim(name="sgd", lr=0.1, steps=4, batch=16),
            name="adversary",
            every=2,
            primary=False,
        )
    )
    after = run(module, tmp_path)
    assert module.step_count == 4 and module.trainer.global_step == 4
    assert not torch.equal(adversary.score.weight, before)
    alone = run(small_module(**terms(), optim=Optim(steps=4, batch=16)), tmp_path / "alone")
    assert all(torch.equal(alone[name], after[name]) for name in alone)  # the other phase did not touch the model
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert "adversary/loss/retain/score" in rows[0]


def test_data_workers_do_not_change_the_order(tmp_path: Path) -> None:
    from unlearn.training.dataloader import StepLoader

    module = small_module(**terms())
    batches = StepLoader(module.common.splits, {"forget": 8, "retain": 16}, module.common.randomness.child("order"))
    loader = batches.loader(2, 6, workers=1)
    assert isinstance(loader, DataLoader)
    steps = [batch["retain"][0]["id"].tolist() for batch in loader]
    assert steps == [batches[step]["retain"][0]["id"].tolist() for step in range(2, 6)]
    steps_per_epoch = len(module.common.splits["forget"]) // 8
    epoch = [item for step in range(steps_per_epoch) for item in batches.ids("forget", step).tolist()]
    assert len(epoch) == len(set(epoch))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inside PyTorch's compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_model_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "GLOW", replace(flow.GLOW, depth=1))  # the compiler's time goes by the layers
    optim = Optim(name="sgd", steps=2, batch=8, lr=1e-3)
    compiled = run(small_module(**terms(), optim=optim), tmp_path / "compiled", compile=True)
    plain = run(small_module(**terms(), optim=optim), tmp_path / "plain")
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-9)


def test_a_parameter_that_no_loss_reaches_ends_the_run_with_its_name(tmp_path: Path) -> None:
    module = small_module(forget={"ascent": LikelihoodAscent()}, retain={}, optim=Optim(steps=2, batch=8))
    idle = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    module.model.register_parameter("idle", idle)
    module.primary.parameters["idle"] = idle
    with pytest.raises(RecipeError, match=r"no loss reaches 1 of .*: idle"):
        run(module, tmp_path)
