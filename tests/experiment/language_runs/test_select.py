"""Keeping the best step of a language model's run: under the limit, until patience ends, after a stop, on its half."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.flow import stop_at
from tests.toys.language import tiny, tiny_splits
from tests.toys.language_files import SMALL, figure, figures, gap, last
from unlearn.config.schema import Gate, Select, Trainer
from unlearn.core.errors import Interrupted
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.core.records import Record
from unlearn.data.base import Split
from unlearn.objectives.language.kl import KL
from unlearn.objectives.language.npo import NPO
from unlearn.run import main
from unlearn.training.build import build_module
from unlearn.training.fit import fit
from unlearn.training.model_selection import ModelSelection
from unlearn.training.module import UnlearningModule

SELECT = "select={evaluator: memorization, metric: exact_memorization, aim: lower, every: 2, "


def limited(low: float) -> str:
    return SELECT + f"limit: {{metric: exact_memorization, split: retain, min: {low}}}"


def test_the_best_step_under_the_limit_is_kept(here: Path) -> None:
    """The kept weights are those of a run that ends at the kept step; the last ones forgot more, and lost too much."""
    assert main([SMALL, limited(0.7) + "}", "output=run"]) == 0
    best = last(here / "run")["callbacks"]["ModelSelection"]["best"]
    assert best["excess"] == 0 and 0 < best["step"] < 12
    assert main([SMALL, f"optim.steps={best['step']}", "output=short"]) == 0
    assert gap(best["parameters"], last(here / "short")["parameters"][0]) == 0
    assert gap(best["parameters"], last(here / "run")["parameters"][0]) > 1e-4
    assert figure(here / "run", "exact_memorization", "unlearned", "retain") >= 0.7
    assert main([SMALL, "output=whole"]) == 0
    assert figure(here / "whole", "exact_memorization", "unlearned", "retain") < 0.7  # the control


def test_the_figures_are_of_the_other_half(here: Path) -> None:
    assert main([SMALL, SELECT + "}", "optim.steps=4", "output=run"]) == 0
    forget = json.loads((here / "run" / "splits.json").read_text())["forget"]
    counts = {r["subject"]: r["n"] for r in figures(here / "run") if r["split"] == "forget"}
    assert set(counts.values()) == {len(forget) // 2}
    rows = csv.DictReader((here / "run" / "items.csv").read_text().splitlines())
    figures_half = Split("forget", tiny_splits()["forget"].dataset, torch.tensor(forget)).halves()[1]
    assert {int(row["id"]) for row in rows if row["split"] == "forget"} == set(figures_half.ids.tolist())


def test_patience_ends_the_run(here: Path) -> None:
    """No step retains more than all: after two measurements in a row, at steps 2 and 4, the run ends."""
    assert main([SMALL, limited(1.1) + ", patience: 2}", "output=run"]) == 0
    state = last(here / "run")
    assert state["step"] == 4 and state["callbacks"]["ModelSelection"]["missed"] == 2
    assert main([SMALL, limited(1.1) + ", patience: 9}", "output=whole"]) == 0
    assert last(here / "whole")["step"] == 12


def test_an_evaluator_that_is_not_there_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([SMALL, "select={evaluator: tofu, metric: model_utility}"]) == 2
    assert "select.evaluator is 'tofu'" in capsys.readouterr().err


@torch.no_grad()
def losses(models: Mapping[str, Any], splits: Mapping[str, Split]) -> list[Record]:
    """The mean loss of each model on two splits."""
    return [
        Record(
            evaluator="losses",
            metric="loss",
            subject=subject,
            split=name,
            value=float(model.training_loss(splits[name].batch(splits[name].ids), Randomness(0)).mean()),
        )
        for subject, model in models.items()
        for name in ("forget", "retain")
    ]


def unlearning(said: list[str]) -> tuple[UnlearningModule, ModelSelection]:
    """A module, and what keeps the step that forgets most while the loss on retain items has not risen by much."""
    splits = tiny_splits()
    model = tiny(dtype=torch.float64)
    optim = Optim(steps=8, batch=4, lr=3e-3)
    groups: dict[str, Any] = {"forget": {"npo": NPO()}, "retain": {"kl": KL()}}
    module = build_module(model, splits, 0, **groups, optim=optim)

    limit = Gate("loss", split="retain", max=float(losses({"target": model}, splits)[1].value) + 0.02)
    select = Select("losses", "loss", aim="higher", every=1, limit=limit)
    halves: dict[str, Split] = {**splits, "forget": splits["forget"].halves()[0]}
    return module, ModelSelection(select, losses, halves, {}, said.append)


def test_a_figure_that_is_not_measured_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise every step would miss the limit, and the last one would be kept in silence."""
    select = "select={evaluator: memorization, metric: exact_memorization, limit: {metric: model_utility, min: 0}}"
    assert main([SMALL, select]) == 2
    assert "evaluate.memorization gives no model_utility. It gives: exact_memorization on forget" in (
        capsys.readouterr().err
    )


def test_a_resumed_run_keeps_its_best(tmp_path: Path) -> None:
    """The best step came before the stop; the run that goes on from the disk ends with the same weights."""
    trainer = Trainer(accelerator="cpu", precision="64-true", tensorboard=False, checkpoint_every=1)
    lines: dict[str, list[str]] = {"whole": [], "cut": []}
    whole, best = unlearning(lines["whole"])
    fit(whole, trainer, tmp_path / "whole", "test", [best])
    stopped, selection = unlearning(lines["cut"])
    stop = best.best["step"] + 1
    assert stop < 8
    stop_at(stopped, stop)
    with pytest.raises(Interrupted):
        fit(stopped, trainer, tmp_path / "cut", "test", [selection])
    again, selection = unlearning(lines["cut"])
    fit(again, trainer, tmp_path / "cut", "test", [selection])
    assert lines["cut"] == lines["whole"]
    assert selection.best["step"] == best.best["step"]
    assert gap(selection.best["parameters"], best.best["parameters"]) == 0
    selection.apply(again)
    assert gap(dict(again.primary.parameters), best.best["parameters"]) == 0
