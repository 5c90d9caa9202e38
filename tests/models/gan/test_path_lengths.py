"""The mean of path lengths that a GAN's training keeps: its course, resume, ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.gan.test_augmented import first_ids, same, train
from tests.models.gan.test_gan import INFO, SMALL
from tests.models.gan.test_training import OPTIM, STREAM
from tests.toys.command import printed_by_ranks
from tests.toys.flow import digits_splits, small_glow
from unlearn.core.errors import Interrupted
from unlearn.models.gan.config import StyleGAN2
from unlearn.objectives.base import Context
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.training.build import training_module
from unlearn.training.module import UnlearningModule

TERM = "retain/training_loss"


def module_of(paths: float = 2.0, steps: int = 20) -> UnlearningModule:
    model = StyleGAN2(**SMALL, paths=paths).build(INFO, STREAM)
    return training_module(model, replace(OPTIM, steps=steps), digits_splits()["retain"], 0)


def states_of(module: UnlearningModule, folder: Path, stop: int | None = None) -> list[dict[str, Any]]:
    """Run to the end, or to a step; return the term's state after each step."""
    states: list[dict[str, Any]] = []
    update = module.average.update

    def note(step: int) -> None:
        states.append(dict(module.states[TERM]))
        update(step)

    module.average.update = note  # type: ignore[method-assign]
    train(module, folder, stop)
    return states


def test_the_mean_moves_at_every_eighth_step(tmp_path: Path) -> None:
    """The first value is the mean of the first batch at the weights as they begin."""
    fresh = module_of()
    items = fresh.common.splits["retain"].batch(first_ids(fresh))
    draw = fresh._context(TERM).randomness
    wanted = fresh.model.adversarial_loss(fresh.auxiliary_networks[0], items, draw)[1].mean().item()
    states = states_of(module_of(), tmp_path / "some")
    assert states[0]["length"] == pytest.approx(wanted)
    assert [state["penalties"] for state in states] == [1] * 8 + [2] * 8 + [3] * 4
    assert [states[step]["length"] == states[step - 1]["length"] for step in (1, 7, 8, 9, 16)] == [1, 1, 0, 1, 0]
    assert states_of(module_of(paths=0.0, steps=2), tmp_path / "none") == [{}] * 2


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, cut, again = module_of(), module_of(), module_of()
    states = states_of(whole, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(cut, tmp_path / "cut", 6)
    assert states_of(again, tmp_path / "cut") == states[6:]
    assert same(whole, again)
    plain = module_of(paths=0.0)
    train(plain, tmp_path / "plain")
    assert not same(whole, plain)  # the control


def test_the_first_hundred_penalties_count_alike() -> None:
    """Of batches 1, 3, 8 the means are 1, 2, 4; from the hundredth on a batch moves the mean by 1 % of the way."""

    term, state = TrainingLoss(), {"length": 0.0, "penalties": 0}

    def see(length: float) -> None:
        seen = {("lengths", "retain"): torch.tensor([4 * length, 4.0], dtype=torch.float64)}
        given: dict[str, Any] = {"splits": {}, "reference": lambda: None, "map_ids": map, "split": "retain"}
        term.after_step({}, Context(0, STREAM, state=state, device=torch.device("cpu"), shared=seen, **given))

    for length, wanted in ((1.0, 1.0), (3.0, 2.0), (8.0, 4.0)):
        see(length)
        assert state["length"] == pytest.approx(wanted)
    state["penalties"] = 500
    see(14.0)
    assert state["length"] == pytest.approx(4.1) and state["penalties"] == 501


def test_only_a_model_that_penalises_paths_is_followed() -> None:
    """Others are asked for no diagnostics at each step."""
    model = small_glow(digits_splits())
    module = training_module(model, replace(OPTIM, steps=1), digits_splits()["retain"], 0)
    assert not TrainingLoss().followed(module._context(TERM))


RANK = """
import json, sys, torch, torch.distributed as dist
from unlearn.objectives.base import Context
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.core.randomness import Randomness

rank, ranks, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=ranks)
lengths = torch.tensor([1, 2, 4, 8, 16], dtype=torch.float64)[rank::ranks]
state = {"length": 0.0, "penalties": 0}
for step in range(3):
    shared = {("lengths", "retain"): torch.stack([lengths.sum() * (step + 1), lengths.new_tensor(len(lengths))])}
    context = Context(step, Randomness(0), {}, state, lambda: None, map, torch.device("cpu"), None, "retain",
                      shared=shared if step != 1 and (rank == 0 or step == 0) else {})
    TrainingLoss().after_step({}, context)
print(json.dumps(state))
"""


def test_ranks_measure_together(tmp_path: Path) -> None:
    """On two ranks as on one, also where a rank has no items; a step without a penalty changes nothing."""
    (one,), two = (printed_by_ranks(RANK, ranks, tmp_path) for ranks in (1, 2))
    assert one == {"length": pytest.approx((31 / 5 + 3 * 31 / 5) / 2), "penalties": 2}
    assert two == [two[0]] * 2
    assert two[0] == {"length": pytest.approx((31 / 5 + 3 * 21 / 3) / 2), "penalties": 2}  # the last step: rank 0 alone
