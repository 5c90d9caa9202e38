"""Objectives for language models in real runs: cut anywhere, resumed anywhere, with no target held beside the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.flow import run, stop_at
from tests.toys.language import tiny, tiny_splits
from unlearn.core.errors import Interrupted
from unlearn.core.optim import Optim
from unlearn.data.base import Split
from unlearn.objectives.base import Objective
from unlearn.objectives.language.dpo import DPO
from unlearn.objectives.language.embedding_difference import EmbeddingDifference
from unlearn.objectives.language.kl import KL
from unlearn.objectives.language.npo import NPO
from unlearn.objectives.language.pdu import PDURetain
from unlearn.objectives.language.rmu import RMU
from unlearn.objectives.language.undial import UNDIAL
from unlearn.objectives.surgery import Combination, OrthoGrad, WeightedSum
from unlearn.training.build import build_module
from unlearn.training.module import UnlearningModule

FORGET: dict[str, Objective] = {"npo": NPO(), "dpo": DPO(), "undial": UNDIAL(), "rmu": RMU(layer=1)}
RETAIN: dict[str, Objective] = {
    "kl": KL(),
    "top": KL(top_k=5),
    "embedding_difference": EmbeddingDifference(layer=1),
    "pdu_retain": PDURetain(epsilon=0.1, start=1.0),
}
"""Everything that keeps something: numbers, states, a head, a steering vector, a dual variable."""


def module(combine: Combination | None = None, **optim: Any) -> UnlearningModule:
    data = tiny_splits()["forget"].dataset
    splits = {"forget": Split("forget", data, torch.arange(4)), "retain": Split("retain", data, torch.arange(4, 10))}
    model = tiny(dtype=torch.float64)
    settings = Optim(**{"steps": 6, "batch": 3, "lr": 1e-3, **optim})
    # without a target: a term that asks for one fails
    return build_module(model, splits, 0, forget=FORGET, retain=RETAIN, optim=settings, combine=combine)


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    whole = module()
    weights = run(whole, tmp_path / "whole", checkpoint_every=2)
    stopped = module()
    stop_at(stopped, 3)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        run(stopped, tmp_path / "cut", checkpoint_every=2)
    again = module()
    resumed = run(again, tmp_path / "cut", checkpoint_every=2)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert again.states["retain/pdu_retain"] == whole.states["retain/pdu_retain"]
    assert whole.states["retain/pdu_retain"]["dual"] > 1
    kept = {file.stem for file in (tmp_path / "cut" / "reference").iterdir()}
    assert kept == {
        "forget.log_prob",
        "forget.log_prob.refusal",
        "forget.answer_states",
        "retain.answer_states",
        "retain.top_5",
        "retain.hidden_1_answer",
        "head.linear.weight",
    }


@pytest.mark.parametrize("combine", [WeightedSum(), OrthoGrad()], ids=lambda method: type(method).__name__)
def test_accumulation_changes_nothing(combine: Combination, tmp_path: Path) -> None:
    """As far as the model's norms allow, which round to single precision; the control: another batch is another run."""
    whole = run(module(combine, steps=3), tmp_path / "whole")
    parts = run(module(combine, steps=3, accumulate=2), tmp_path / "parts")
    other = run(module(combine, steps=3, batch=2), tmp_path / "other")
    assert difference(whole, parts) < 1e-6 < 1e-4 < difference(whole, other)


def test_the_checkpoint_holds_no_head(tmp_path: Path) -> None:
    """Of all that the terms keep, only the steering vector and the dual variable are states."""
    own = module(steps=1)
    run(own, tmp_path)
    assert {key: set(state) for key, state in own.states.items() if state} == {
        "forget/rmu": {"steering"},
        "retain/pdu_retain": {"dual", "epsilon"},
    }
    names = set(own.snapshot()["parameters"][0])
    assert names == {name for name, _ in own.model.named_parameters()}
