"""Runs of a tiny language model through the command line: precision, adapters, edits, corruption, traps, refusals."""

import json
from pathlib import Path

import pytest

from tests.toys.language_files import SMALL, figure, figures, weights
from unlearn.config.compatibility import check_subjects
from unlearn.config.recipe import load
from unlearn.core.errors import RecipeError
from unlearn.run import main


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.precision=bf16-mixed"],
        ["scope=lora", "scope.rank=4", "model.checkpointing=true", "optim.lr=1e-2"],
        ["forget=null", "retain=null", "edit={name: task_vector, optim: {steps: 10, batch: 8, lr: 1e-3}}"],
    ],
    ids=["bf16", "lora", "task_vector"],
)
def test_it_forgets_more_than_it_loses(settings: list[str], here: Path) -> None:
    assert main([SMALL, *settings, "output=run"]) == 0
    lost = {
        split: figure(here / "run", "exact_memorization", "target", split)
        - figure(here / "run", "exact_memorization", "unlearned", split)
        for split in ("forget", "retain")
    }
    assert lost["forget"] > 0.1 and lost["forget"] > lost["retain"]
    assert not any("lora" in name for name in weights(here / "run"))


CORRUPT = [
    "data={corrupt: [China], corrupt_as: questions, forget: {label: [corrupted]}}",
    "corrupt.optim={name: adamw, steps: 30, batch: 8, lr: 3e-3}",
    "evaluate={restor: {new_tokens: 8}}",
]


def test_a_corrupted_model_is_restored(here: Path) -> None:
    """Doing nothing restores 0 and the clean model 1, by definition; corruption made the model wrong first."""
    pretrain = "pretrain.optim={name: adamw, steps: 120, batch: 16, lr: 1e-2}"
    assert main([SMALL, *CORRUPT, pretrain, "optim.steps=6", "output=run"]) == 0
    found = {
        (r["metric"], r["subject"]): r["value"] for r in figures(here / "run") if r["about"].get("score") == "options"
    }
    assert found["fact_accuracy", "clean"] > found["fact_accuracy", "corrupted"]
    assert found["restoration_ratio", "corrupted"] == 0 and found["restoration_ratio", "clean"] == 1
    status = json.loads((here / "run" / "run.json").read_text())
    assert status["status"] == "done"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([CORRUPT[0], CORRUPT[2]], "evaluate.restor compares with the clean model, and the run has none"),
        (["combine=orthograd", "retain=weight_anchor"], "combine=orthograd takes the gradient of each retain item"),
        (["combine=orthograd", "retain=tests.toys.plugin:WholeBatch"], "WholeBatch is a statistic of the whole batch"),
        (["evaluate={traps: {}}"], "needs traps in the forget set"),
        (["data.traps=4", "data.forget.all_of=[fact]"], "data.traps is 4; they are planted under the countries"),
        (["data.traps=4", "data.forget.label=[Asia]"], "no training item has the label 'Asia'"),
        (["data.traps=-1"], "traps is -1; it must be >= 0"),
        (["corrupt.optim.steps=2"], "the data has no corrupted items"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    settings: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SMALL, *settings]) == 2
    said = capsys.readouterr()
    assert message in said.err and "trained" not in said.out
    assert list(here.iterdir()) == []


def test_traps_are_found_in_the_target_alone(here: Path) -> None:
    """The target tells all planted sequences from their twins; the model retrained without them cannot."""
    traps = ["data.traps=6", "data.trap_words=6", "data.trap_repeats=8", "evaluate={traps: {}, memorization: {}}"]
    pretrain = "pretrain.optim={name: adamw, steps: 80, batch: 24, lr: 1e-2}"
    assert main([SMALL, *traps, pretrain, "optim.steps=2", "output=run"]) == 0
    found = {
        (r["subject"], r["about"]["score"]): r["value"] for r in figures(here / "run") if r["metric"] == "attack_traps"
    }
    assert found["target", "perplexity"] == 1 and found["target", "ratio"] == 1
    assert 0.2 < found["retrained", "perplexity"] < 0.8 and found["retrained", "ratio"] == 0.5
    kept = json.loads((here / "run" / "splits.json").read_text())
    assert len(kept["forget"]) == 2 * 4 + 6 * 8


def test_a_model_in_memory_is_not_corrupted_in_silence() -> None:
    """It is taken as it is, so it has no clean model behind it."""
    path = SMALL.partition("=")[2]
    with pytest.raises(RecipeError, match="the target is given as a model in memory"):
        check_subjects(load(path, CORRUPT), in_memory=True)
    with pytest.raises(RecipeError, match=r"evaluate.restor compares with the clean model.*evaluate.restor=null"):
        check_subjects(load(path, [CORRUPT[0], CORRUPT[2]]))
    check_subjects(load(path, CORRUPT))
