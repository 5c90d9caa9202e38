"""The recipe of published scale on a small pipeline: every method runs, and what it changed is kept and applied."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.toys.pipelines import small_pipeline
from unlearn.config.recipe import load
from unlearn.delta import main as delta
from unlearn.delta import weights
from unlearn.experiment.runner import check
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.run import main

NAME = "diffusion/stable_diffusion"
METHODS = {
    "esd": ["forget=esd"],
    "sdd": ["forget=sdd"],
    "concept_ablation": ["forget=concept_ablation", "forget.states.items=2"],
    "random_label": ["forget=random_label", "forget.states.items=2"],
    "denoising_ascent": ["forget=denoising_ascent", "forget.states.items=2"],
    "uce": ["forget=null", "edit=uce"],
    "rece": ["forget=null", "edit=rece"],
}
WORDS = "data.concepts=[{name: three, anchor: eight, retain: [two], templates: ['a red {}', 'a blue {}']}]"
QUICK = ["model.steps=2", "evaluate.sample_grid.side=1", "trainer={accelerator: cpu, threads: 1, tensorboard: false}"]
SHORT = ["forget.states.steps=3", "optim.steps=2", "optim.batch=2"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "target"
    small_pipeline().save_pretrained(folder)
    return folder


def arguments(method: str, target: Path, *settings: str) -> list[str]:
    short = SHORT if method not in ("uce", "rece") else []
    return [WORDS, f"model.pretrained={target}", *METHODS[method], *QUICK, *short, *settings]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_name_has_its_settings_and_is_checked_without_weights(method: str, target: Path) -> None:
    recipe = load(NAME, arguments(method, target))
    assert (recipe.edit is None) == (method not in ("uce", "rece"))
    text = check(recipe)
    assert "built without its weights" in text and "2 forget" in text and "The recipe is sound." in text
    assert ("gradients" in text) == (recipe.edit is None)


@pytest.mark.parametrize("method", ["esd", "uce"])
def test_a_run_is_kept_as_a_small_file_and_applied(
    method: str, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Applied to its own base it gives the run's model; what it gives is a pipeline of diffusers."""
    monkeypatch.chdir(tmp_path)
    assert main([f"recipe={NAME}", *arguments(method, target), "output=run"]) == 0, capsys.readouterr().err
    assert delta(["save", "run", "change.safetensors"]) == 0
    assert "tensors changed" in capsys.readouterr().out
    assert delta(["apply", "change.safetensors", str(target), "again"]) == 0
    assert "is not the base" not in capsys.readouterr().out
    unlearned, again = (weights(Diffusion.from_pretrained(tmp_path / name)) for name in ("run/model", "again"))
    before = weights(Diffusion.from_pretrained(target))
    changed = {name for name, value in before.items() if not torch.equal(value, unlearned[name])}
    assert changed and all("attn2" in name for name in changed)
    for name, value in again.items():
        torch.testing.assert_close(value, unlearned[name], rtol=1e-6, atol=1e-8)
        assert (name in changed) != torch.equal(value, before[name])
    size = (tmp_path / "change.safetensors").stat().st_size
    assert size < sum(file.stat().st_size for file in target.rglob("*.safetensors")) / 2
    StableDiffusionPipeline.from_pretrained(tmp_path / "again", safety_checker=None)
