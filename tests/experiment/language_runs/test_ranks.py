"""A language model on two ranks, and after a kill: the same run."""

from pathlib import Path

import pytest
import torch

from tests.toys.command import kill_after_a_checkpoint, unlearn_on_two_ranks
from tests.toys.language_files import SMALL, figure, gap, last, weights
from unlearn.run import main

COMBINATIONS = ["sum", "orthograd"]


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder of runs in double precision with 5 items a step, on one rank and on two; another seed as the control."""
    folder = tmp_path_factory.mktemp("precise")

    def settings(combine: str, name: str) -> list[str]:
        steps = ["trainer.precision=64-true", "optim.steps=6", "evaluate={memorization: {}}"]
        return [SMALL, f"combine={combine}", *steps, f"output={combine}/{name}"]

    unlearn_on_two_ranks(*(settings(combine, "two") for combine in COMBINATIONS), cwd=folder, cache=cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(cache))
        patch.chdir(folder)
        for combine in COMBINATIONS:
            assert main(settings(combine, "one")) == 0
            assert main([*settings(combine, "other"), "seed=1"]) == 0
    return folder


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_two_ranks_are_one_rank(combine: str, precise: Path) -> None:
    """As far as the model's norms allow, which round to single precision."""
    here = precise / combine
    one, two, other = (last(here / name)["parameters"][0] for name in ("one", "two", "other"))
    assert next(iter(one.values())).dtype == torch.float64
    assert gap(one, two) < 1e-6 < 1e-4 < gap(one, other)
    for metric in ("exact_memorization", "extraction_strength"):
        for split in ("forget", "retain"):
            both = [figure(here / name, metric, "unlearned", split) for name in ("one", "two")]
            assert both[0] == pytest.approx(both[1], abs=1e-6)


def test_a_killed_run_ends_in_the_same_weights(here: Path, cache: Path) -> None:
    """kill -9 after a checkpoint, then resume=auto: bit for bit, with the target's values read from disk."""
    settings = [SMALL, "optim.steps=120", "evaluate={cost: {}}"]
    assert main([*settings, "output=whole"]) == 0
    folder = here / "killed"
    folder.mkdir()
    assert 0 < kill_after_a_checkpoint(settings, folder, cache, 0.2) < 120
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("runs/**/reference/*.safetensors")}
    assert {path.stem for path in kept} == {"forget.log_prob", "retain.answer_states", "head.linear.weight"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*settings, "resume=auto"]) == 0
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    run = next(folder.glob("runs/**/report.html")).parent
    whole = weights(here / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(run).items())
