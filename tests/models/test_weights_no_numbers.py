"""Weights that are not finite are refused where they are read, by their names, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.toys import ROOT
from tests.toys.command import unlearn
from tests.toys.diffusion import small_model as small_diffusion
from tests.toys.flow import digits_splits, small_glow
from tests.toys.gan import small_gan
from tests.toys.language import tiny
from unlearn.core.errors import RecipeError
from unlearn.delta import main as delta
from unlearn.models.base import Wrapper
from unlearn.models.flow.wrapper import Flow
from unlearn.models.gan.serialization import DISCRIMINATOR
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.wrapper import LatentGenerator

RECIPE = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}"
QUICK = ["retain=null", "pretrain.retrained=false", "pretrain.optim.steps=3", "optim.steps=2", "evaluate={cost: {}}"]


def spoiled(file: Path, value: float) -> str:
    """Write a value into the first tensor of a file that has floats, and return its name."""
    weights = load_file(file)
    name = min(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] = value
    save_file(weights, file, {"format": "pt"})
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["flow", "stylegan2", "dcgan"])
def test_a_model_is_refused_by_its_tensors_names(kind: str, value: float, tmp_path: Path) -> None:
    model: Wrapper = small_glow(digits_splits()) if kind == "flow" else small_gan(kind)
    model.save_pretrained(tmp_path)
    type(model).from_pretrained(tmp_path)
    name = spoiled(tmp_path / "model.safetensors", value)
    with pytest.raises(RecipeError, match="not finite") as caught:
        type(model).from_pretrained(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("kind", ["flow", "stylegan2", "dcgan", "language", "diffusion"])
def test_weights_in_whole_numbers_are_refused(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """As a quantisation leaves them that the folder does not mention: read as they are, they would be rubbish."""
    models = {"flow": lambda: small_glow(digits_splits()), "language": tiny, "diffusion": small_diffusion}
    model: Wrapper = models.get(kind, lambda: small_gan(kind))()
    model.save_pretrained(tmp_path)
    file = max(tmp_path.rglob("*.safetensors"))
    weights = load_file(file)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name] = weights[name].to(dtype)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RecipeError, match="no floating-point numbers") as caught:
        type(model).from_pretrained(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("value", [0, 99])
def test_a_permutation_that_is_none_is_refused(value: int, tmp_path: Path) -> None:
    small_glow(digits_splits()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("_permutation"))
    weights[name][:] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match="twice or not at all"):
        Flow.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("flow", ("info", "levels"), 0),
        ("flow", ("info", "levels"), "x"),
        ("flow", ("info", "shape"), [1, 0, 8]),
        ("flow", ("config", "temperature"), None),
        ("flow", ("config", "temperature"), float("inf")),
        ("stylegan2", ("levels",), 1),
        ("stylegan2", ("truncation",), float("nan")),
        ("dcgan", ("levels",), -1),
        ("dcgan", ("truncation",), -1),
    ],
)
def test_numbers_out_of_range_are_refused(kind: str, place: tuple[str, ...], value: object, tmp_path: Path) -> None:
    model: Wrapper = small_glow(digits_splits()) if kind == "flow" else small_gan(kind)
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    inner = about
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(RecipeError, match="does not describe"):
        type(model).from_pretrained(tmp_path)


def test_a_discriminator_is_refused_before_it_is_needed(tmp_path: Path) -> None:
    model = small_gan("stylegan2", torch.float32)
    model.save_pretrained(tmp_path)
    file = tmp_path / DISCRIMINATOR
    save_file(Discriminator(model.generator.shape).state_dict(), file)  # type: ignore[union-attr, arg-type]
    LatentGenerator.from_pretrained(tmp_path)
    name = spoiled(file, float("nan"))
    with pytest.raises(RecipeError, match=f"{DISCRIMINATOR} holds weights that are not finite, in {name}"):
        LatentGenerator.from_pretrained(tmp_path)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    small_gan("dcgan").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(RecipeError, match="git lfs pull"):
        LatentGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["flow", "stylegan2"])
def test_half_precision_comes_back_as_it_is_measured(kind: str, tmp_path: Path) -> None:
    model: Wrapper = (small_glow(digits_splits()) if kind == "flow" else small_gan(kind)).float()
    model.save_pretrained(tmp_path, torch.float16)
    read = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in read.parameters():
            parameter *= 1.0001
    read.round_as_saved()
    read.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors").values()
    assert {value.dtype for value in stored if value.is_floating_point()} == {torch.float16}
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in read.state_dict().items())
    read.save_pretrained(tmp_path, torch.float32)
    type(model).from_pretrained(tmp_path).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors").values()
    assert {value.dtype for value in stored if value.is_floating_point()} == {torch.float32}


def test_runs_checkpoints_and_deltas_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run begins from no such target, none is resumed from such a checkpoint, and no such delta is applied."""
    cache = tmp_path / "cache"
    done = unlearn(RECIPE, *QUICK, "output=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    (record,) = (cache / "models").glob("*/trained.json")
    target = record.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(cache))
        assert delta(["save", str(tmp_path / "run"), str(tmp_path / "change.safetensors")]) == 0
        _spoil_delta(tmp_path / "change.safetensors")
        capsys.readouterr()
        assert delta(["apply", str(tmp_path / "change.safetensors"), str(target), str(tmp_path / "out")]) == 2
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "out").exists()

    _unfinish(tmp_path / "run")
    resumed = unlearn("resume=run", cwd=tmp_path, cache=cache)
    assert resumed.returncode == 2 and "last.ckpt holds weights that are not finite" in resumed.stderr
    assert not (tmp_path / "run" / "model").exists()

    name = spoiled(target / "model.safetensors", float("nan"))
    given = unlearn(RECIPE, *QUICK, f"model.pretrained={target}", "output=other", cwd=tmp_path, cache=cache)
    assert given.returncode == 2 and name in given.stderr and not (tmp_path / "other").exists()


def _spoil_delta(file: Path) -> None:
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
        weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, it is no mapping
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, file, metadata)


def _unfinish(run: Path) -> None:
    """Take a run back to its last step, with a weight in the checkpoint that is no number."""
    shutil.rmtree(run / "model")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "status": "stopped"}))
    for left in run.rglob("*.ckpt"):
        if left.name != "last.ckpt":
            left.unlink()
    file = run / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    next(iter(state["parameters"][0].values())).view(-1)[0] = float("nan")
    torch.save(state, file)
