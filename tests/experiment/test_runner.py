"""Whole runs through the real command line: ranks, kills, errors, exit codes, the Python entry."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unlearn
from tests.toys import ROOT
from tests.toys.command import environment, kill_after_a_checkpoint, unlearn_on_two_ranks
from tests.toys.command import unlearn as command
from unlearn.core.errors import GateFailed, RecipeError
from unlearn.models.flow.wrapper import Flow

SMALL = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """One uninterrupted run; it also fills the cache of trained models."""
    folder = tmp_path_factory.mktemp("finished")
    done = command(SMALL, "output=run", cwd=folder, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_a_run_leaves_all_that_it_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "recipe.yaml", "command.txt", "environment.json", "metrics.json", "metrics.csv", "log.txt", "run.json",
        "checkpoints", "samples", "model", "report.html",
    }  # fmt: skip
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["schema"] == 1 and metrics["steps"] == 20
    subjects = {record["subject"] for record in metrics["records"] if record["metric"] == "bits_per_dim"}
    assert subjects == {"target", "unlearned", "retrained"}
    assert (finished / "model" / "README.md").is_file()
    assert json.loads((finished / "run.json").read_text())["status"] == "done"
    checkpoint = (finished / "checkpoints" / "last.ckpt").stat().st_size
    model = (finished / "model" / "model.safetensors").stat().st_size
    assert checkpoint < 5 * model + 50_000  # weights, two Adam averages, buffers: no frozen target


def test_it_forgets_more_than_it_loses(finished: Path) -> None:
    """Even 20 steps on a small flow make the threes less likely by more than the rest."""
    records = json.loads((finished / "metrics.json").read_text())["records"]
    bits = {(r["subject"], r["split"]): r["value"] for r in records if r["metric"] == "bits_per_dim"}
    lost_forget = bits["unlearned", "forget"] - bits["target", "forget"]
    lost_retain = bits["unlearned", "retain"] - bits["target", "retain"]
    assert lost_forget > 0.05 and lost_forget > 1.5 * lost_retain


COMBINATIONS = ["sum", "pcgrad", "one_sided", "gru", "mgda"]


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory, cache: Path, finished: Path) -> Path:
    """A folder of runs of 20 float64 steps with a global batch that does not divide by two, on one rank and on two."""
    folder = tmp_path_factory.mktemp("precise")

    def settings(combine: str, ranks: str) -> list[str]:
        precise = ["trainer.precision=64-true", "optim.batch=31"]
        return [SMALL, f"combine={combine}", *precise, f"output={combine}/{ranks}"]

    unlearn_on_two_ranks(*(settings(combine, "two") for combine in COMBINATIONS), cwd=folder, cache=cache)
    for combine in COMBINATIONS:
        done = command(*settings(combine, "one"), cwd=folder, cache=cache)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_two_ranks_are_one_rank(combine: str, precise: Path, cache: Path) -> None:
    """The weights of the last step; those that are saved as the model are float32."""
    first, second = (
        torch.load(precise / combine / name / "checkpoints" / "last.ckpt", weights_only=True)["parameters"][0]
        for name in ("one", "two")
    )
    gap = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert next(iter(first.values())).dtype == torch.float64
    assert gap < 1e-6
    target = next(p.parent for p in (cache / "models").glob("*/trained.json") if '"target"' in p.read_text())
    start = dict(Flow.from_pretrained(target).named_parameters())
    moved = max(float((first[name].float() - start[name].detach()).abs().max()) for name in first)
    assert moved > 1e-4  # the control: there was something to differ in


def test_killed_runs_end_in_the_same_weights(tmp_path: Path, cache: Path, finished: Path) -> None:
    """kill -9 at three random moments between the first checkpoint and the end, then resume=auto: bit for bit."""
    long = [SMALL, "optim.steps=80"]
    done = command(*long, "output=whole", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    whole = weights(tmp_path / "whole")
    chance = random.Random(0)
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        step = kill_after_a_checkpoint(long, folder, cache, chance.uniform(0, 1))
        assert 0 < step < 80
        again = command(*long, "resume=auto", cwd=folder, cache=cache)
        assert again.returncode == 0, f"killed after step {step}: {again.stderr}"
        run = next(folder.glob("runs/**/report.html")).parent
        assert all(torch.equal(value, whole[name]) for name, value in weights(run).items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_left_alone_by_others_and_a_signal_saves_it_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, cache: Path, finished: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "unlearn.run", SMALL, "optim.steps=4000", "output=run"],
        cwd=tmp_path,
        env=environment(cache),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    again = command("resume=run", cwd=tmp_path, cache=cache)
    assert again.returncode == 2 and "process" in again.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "python -m unlearn.run resume=run" in errors
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["step"] > 0


def test_a_saliency_mask_on_a_term_with_moving_statistics(tmp_path: Path, cache: Path, finished: Path) -> None:
    scope = ["scope=saliency", "scope.share=0.3", "combine=pcgrad"]
    done = command(SMALL, *scope, "optim.steps=3", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    assert "trained: 326 of 1,088" in done.stderr


def test_a_missed_gate_exits_with_3_and_keeps_the_run(tmp_path: Path, cache: Path, finished: Path) -> None:
    bits = "metric: bits_per_dim, split: retain"
    gate = f"gate={{cheap: {{{bits}, max: 0.1}}, fine: {{{bits}, min: 0}}}}"
    done = command(SMALL, gate, "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 3, done.stderr
    assert "gate.cheap" in done.stderr and "gate.fine" not in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.lrr=1"], "lr"),
        (["optim.lr=fast"], "optim.lr"),
        (["recipe=flow/nothing"], "flow/nothing"),
        (["model.pretrained=nowhere"], "nowhere"),
        (["data.forget.label=33"], "33"),
        (["data.forget=null"], "data.forget is empty"),
        (["data.retain.label=[3,4]"], "disjoint"),
        (["evaluate.rouge={}"], "rouge"),
        (["model.pretrained=broken"], "broken"),
        (["trainer.accelerator=gpu"], "GPU"),
        (["forget.name=tests.toys.plugin:NeedsText"], "continues"),
        (["resume=runs/none"], "none"),
        (["scope=pattern", "scope.include=[zzz]"], "matches no parameter"),
        (["optim.batch=1"], "batch"),
        (["data.forget.count=-3"], "count is -3"),
        (["data.retain.likelihood_quantile=[0.9,0.2]"], "likelihood_quantile"),
        (["evaluate.likelihood_rank.reference=probe"], "reference"),
        (["combine=pcgrad", "retain=null"], "no retain part"),
    ],
)
def test_wrong_input_is_one_message_and_leaves_nothing(
    settings: list[str], message: str, tmp_path: Path, cache: Path, finished: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (broken / "model.safetensors").write_bytes(b"not a model")
    given = settings if settings[0].split("=")[0] in ("recipe", "resume") else [SMALL, *settings]
    done = command(*given, cwd=tmp_path, cache=cache)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_corrupt_checkpoint_is_named(tmp_path: Path, cache: Path, finished: Path) -> None:
    process = command(SMALL, "optim.steps=2", "output=run", cwd=tmp_path, cache=cache)
    assert process.returncode == 0, process.stderr
    status = tmp_path / "run" / "run.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    outcome = tmp_path / "run" / "checkpoints" / "outcome.ckpt"
    outcome.write_bytes(b"torn")
    again = command("resume=run", cwd=tmp_path, cache=cache)
    assert again.returncode == 2 and "outcome.ckpt" in again.stderr and "Traceback" not in again.stderr
    outcome.unlink()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    again = command("resume=run", cwd=tmp_path, cache=cache)
    assert again.returncode == 2 and "last.ckpt" in again.stderr and "Traceback" not in again.stderr


def test_several_seeds_are_summed_up(tmp_path: Path, cache: Path, finished: Path) -> None:
    done = command(SMALL, "seed=[0,1]", "optim.steps=3", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())["records"]
    parts = [json.loads((tmp_path / "run" / f"seed-{seed}" / "metrics.json").read_text())["records"] for seed in (0, 1)]
    key = ("bits_per_dim", "unlearned", "forget")
    values = [next(r["value"] for r in p if (r["metric"], r["subject"], r["split"]) == key) for p in parts]
    mean = next(r["value"] for r in summary if (r["metric"], r["subject"], r["split"]) == key)
    assert values[0] != values[1] and mean == pytest.approx(sum(values) / 2)


def test_from_python_with_a_model_in_memory(
    tmp_path: Path, cache: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARN_CACHE", str(cache))
    target = Flow.from_pretrained(finished / "model")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    recipe = ROOT / "tests" / "toys" / "recipes" / "small.yaml"
    result = unlearn.unlearn(target, recipe=recipe, **{"optim.steps": 3, "data.forget.label": 5})
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in result.model.state_dict().items())
    assert {record.subject for record in result.records} == {"target", "unlearned"}
    by_path = unlearn.unlearn(finished / "model", recipe=recipe, optim={"steps": 3}, data={"forget": {"label": 5}})
    assert all(
        torch.equal(value, result.model.state_dict()[name]) for name, value in by_path.model.state_dict().items()
    )
    with pytest.raises(RecipeError, match=r"optim\.stepps"):
        unlearn.unlearn(target, recipe=recipe, optim={"stepps": 3})
    with pytest.raises(GateFailed) as missed:
        unlearn.unlearn(target, recipe=recipe, **{"optim.steps": 1}, gate={"g": {"metric": "steps", "min": 2}})
    assert missed.value.result.folder.is_dir()


def test_a_run_whose_recipe_was_changed_is_not_resumed(tmp_path: Path, cache: Path, finished: Path) -> None:
    done = command(SMALL, "optim.steps=2", "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    status = tmp_path / "run" / "run.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    text = tmp_path / "run" / "recipe.yaml"
    text.write_text(text.read_text().replace("steps: 2 ", "steps: 9 "))
    again = command("resume=run", cwd=tmp_path, cache=cache)
    assert again.returncode == 2 and "was changed" in again.stderr


def test_a_run_whose_target_was_changed_is_not_resumed(tmp_path: Path, cache: Path, finished: Path) -> None:
    target = tmp_path / "target"
    shutil.copytree(finished / "model", target)
    settings = [SMALL, f"model.pretrained={target}", "optim.steps=2", "output=run"]
    assert command(*settings, cwd=tmp_path, cache=cache).returncode == 0
    status = tmp_path / "run" / "run.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    moved = {
        name: 1.1 * value
        for name, value in load_file(target / "model.safetensors").items()
        if value.is_floating_point()
    }
    save_file({**load_file(target / "model.safetensors"), **moved}, target / "model.safetensors")
    again = command("resume=run", cwd=tmp_path, cache=cache)
    assert again.returncode == 2 and "the target model changed" in again.stderr
    assert json.loads(status.read_text())["status"] == "running"  # putting the target back is enough


def test_divergence_keeps_the_state_before_the_step(tmp_path: Path, cache: Path, finished: Path) -> None:
    wild = ["optim.lr=1e6", "forget.weight=1e6", "trainer.checkpoint_every=1000"]
    done = command(SMALL, *wild, "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 1 and "not finite" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state["parameters"][0].values())


def test_signals_are_given_back(tmp_path: Path, cache: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARN_CACHE", str(cache))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    unlearn.unlearn(finished / "model", recipe=ROOT / "tests" / "toys" / "recipes" / "small.yaml", **{"optim.steps": 1})
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
