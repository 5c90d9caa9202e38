"""Deltas of a flow: written from a run, applied to its base and to another, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.toys import ROOT
from tests.toys.language import tiny
from unlearn.core.randomness import Randomness
from unlearn.delta import main, read, weights
from unlearn.models.flow.config import GlowConfig
from unlearn.models.flow.wrapper import Flow
from unlearn.run import main as run

SMALL = ["retain=null", "pretrain.retrained=false", "pretrain.optim.steps=5", "optim.steps=3", "evaluate={cost: {}}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which two tensors move, beside a file of what it changed."""
    folder = tmp_path_factory.mktemp("delta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(folder / "cache"))
        scope = r"scope={name: pattern, include: [weight$], exclude: []}"
        recipe = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}"
        assert run([recipe, *SMALL, scope, f"output={folder / 'run'}"]) == 0
        assert main(["save", str(folder / "run"), str(folder / "change.safetensors")]) == 0
    return folder


def base_of(finished: Path) -> Path:
    """The run's target, which its training left in the cache."""
    (record,) = (finished / "cache" / "models").glob("*/trained.json")
    return record.parent


def moved(source: Path, folder: Path) -> Path:
    """Another base of the same shapes."""
    model = Flow.from_pretrained(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.125
    folder.mkdir()
    model.save_pretrained(folder)
    return folder


def test_a_delta_holds_what_changed_and_what_it_belongs_to(finished: Path) -> None:
    about, differences = read(finished / "change.safetensors")
    target = weights(Flow.from_pretrained(base_of(finished)))
    unlearned = weights(Flow.from_pretrained(finished / "run" / "model"))
    changed = {name for name, value in target.items() if not torch.equal(value, unlearned[name])}
    assert set(differences) == changed and 0 < len(changed) < len(target)
    for name, difference in differences.items():
        assert torch.equal(difference, unlearned[name] - target[name])
    assert (about.model, about.family, about.recipe) == ("glow", "flow", "small") and len(about.base) == 64
    with safe_open(finished / "change.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_applied_to_its_base_it_gives_the_runs_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["apply", str(finished / "change.safetensors"), str(base_of(finished)), str(out)]) == 0
    assert "is not the base" not in capsys.readouterr().out
    found, unlearned = weights(Flow.from_pretrained(out)), weights(Flow.from_pretrained(finished / "run" / "model"))
    for name, value in unlearned.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def test_applied_to_another_base_it_says_so_and_adds_the_differences(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = moved(base_of(finished), tmp_path / "other"), tmp_path / "out"
    assert main(["apply", str(finished / "change.safetensors"), str(other), str(out)]) == 0
    assert "is not the base that the delta was made of" in capsys.readouterr().out
    _, differences = read(finished / "change.safetensors")
    before, after = weights(Flow.from_pretrained(other)), weights(Flow.from_pretrained(out))
    for name, value in before.items():
        assert torch.equal(after[name], value + differences[name] if name in differences else value)


def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = GlowConfig(scales=1, depth=2, width=16).build({"shape": (1, 8, 8), "levels": 17}, Randomness(0, "wide"))
    deep = GlowConfig(scales=1, depth=1, width=8).build({"shape": (1, 8, 8), "levels": 17}, Randomness(0, "deep"))
    text = tiny()
    for name, model in (("wide", wide), ("deep", deep), ("text", text)):
        (tmp_path / name).mkdir()
        model.save_pretrained(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    delta, base = str(finished / "change.safetensors"), str(base_of(finished))
    for given, message in (
        ([delta, str(tmp_path / "wide"), "out"], "shapes differ: "),
        ([delta, str(tmp_path / "deep"), "out"], f"{tmp_path / 'deep'} lacks "),
        ([delta, str(tmp_path / "text"), "out"], "is of a flow model, and "),
        ([delta, str(tmp_path / "text"), "out"], "holds a language model"),
        ([delta, str(tmp_path / "empty"), "out"], "holds no flow model"),
        ([delta, str(tmp_path / "nowhere"), "out"], "there is no folder"),
        ([f"{base}/model.safetensors", base, "out"], "is no delta (KeyError"),
        ([str(tmp_path / "full" / "file"), base, "out"], "is no delta"),
        ([delta, base, "full"], "is there already"),
    ):
        assert main(["apply", given[0], given[1], str(tmp_path / given[2])]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_saved_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "new.safetensors"
    same = ["--base", str(finished / "run" / "model")]
    for given, message in (
        ([str(tmp_path), str(out)], "holds no finished run"),
        ([str(finished / "run"), str(finished / "change.safetensors")], "is there already"),
        ([str(finished / "run"), str(tmp_path / "no" / "new.safetensors")], "there is no folder"),
        ([str(finished / "run"), str(out)], "Give its folder: --base FOLDER"),
        ([str(finished / "run"), str(out), *same], "has the weights of its target"),
    ):
        assert main(["save", *given]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert list(tmp_path.iterdir()) == []
    assert main(["save", str(finished / "run"), str(out), "--base", str(base_of(finished))]) == 0
    assert load_file(out).keys() == load_file(finished / "change.safetensors").keys()


def test_weights_that_have_two_names_are_there_once() -> None:
    """An output layer that is tied to the embeddings is changed once, not twice."""
    model = tiny()
    found = weights(model)
    assert len({value.data_ptr() for value in found.values()}) == len(found)
    assert sum(value.numel() for value in found.values()) == sum(value.numel() for value in model.parameters())


def test_a_file_of_tensors_alone_is_no_delta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert main(["apply", str(tmp_path / "plain.safetensors"), str(tmp_path), str(tmp_path / "out")]) == 2
    assert "is no delta" in capsys.readouterr().err


def test_values_that_cannot_be_added_are_refused_and_a_link_or_dot_is_a_folder(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double that is finite can be infinite in the model; the folder one stands in is an empty folder too."""
    with safe_open(finished / "change.safetensors", "pt") as file:
        header, name = file.metadata(), next(iter(file.keys()))
        difference = file.get_tensor(name)
    given, base = tmp_path / "given.safetensors", str(base_of(finished))
    for wrong, message in (
        (torch.full_like(difference, 1e300, dtype=torch.float64), "not finite"),
        (difference.to(torch.complex64), "no floats"),
        (difference > 0, "no floats"),
    ):
        save_file({name: wrong}, given, header)
        assert main(["apply", str(given), base, str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out, place in ((str(tmp_path / "link"), "real"), (".", "here")):
        assert main(["apply", str(finished / "change.safetensors"), base, out]) == 0
        assert (tmp_path / place / "config.json").is_file()
