"""What is written is read again, and folders that no model comes out of are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from tests.toys.diffusion import CONFIGS, Conditioning, small_model, some_items
from tests.toys.pipelines import small_pipeline
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.diffusion.config import StableDiffusion
from unlearn.models.diffusion.wrapper import Diffusion

STREAM = Randomness(0, "test")
ALL: list[Conditioning] = ["class", "text", "dit"]


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("told", ALL)
def test_what_is_saved_is_read_again(told: Conditioning, dtype: torch.dtype | None, tmp_path: Path) -> None:
    """In half precision the weights are rounded once; the model that is saved keeps its own, bit for bit."""
    model = small_model(told, prediction="v_prediction").float()
    model.settings.steps, model.settings.guidance = 7, 3.5
    kept = {name: value.clone() for name, value in (*model.state_dict().items(), ("alphas", model.alphas))}
    model.save_pretrained(tmp_path, dtype)
    now = {**model.state_dict(), "alphas": model.alphas}
    assert all(torch.equal(now[name], value) and now[name].dtype == value.dtype for name, value in kept.items())
    read = Diffusion.from_pretrained(tmp_path)
    assert read.settings == model.settings and torch.equal(read.alphas, model.alphas)
    for name, value in read.named_parameters():
        assert torch.equal(value, kept[name].to(dtype or torch.float32).float()), name
        assert value.dtype == torch.float32
    batch = some_items(told)
    if dtype is None:
        assert torch.equal(read.training_loss(batch, STREAM), model.training_loss(batch, STREAM))
    else:
        torch.testing.assert_close(
            read.training_loss(batch, STREAM), model.training_loss(batch, STREAM), rtol=0.02, atol=0.02
        )
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert size < (2.6 if dtype else 5) * sum(value.numel() for value in model.parameters())


def test_files_do_not_say_where_a_model_was_read(tmp_path: Path) -> None:
    small_model("text").float().save_pretrained(tmp_path / "first")
    Diffusion.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    written = list((tmp_path / "second").rglob("*.json"))
    assert written and not any("first" in file.read_text() for file in written)
    Diffusion.from_pretrained(tmp_path / "second")


def test_settings_of_the_recipe_are_laid_over_the_folders(tmp_path: Path) -> None:
    small_model("text").float().save_pretrained(tmp_path)
    config = type(CONFIGS["text"])(pretrained=str(tmp_path), steps=3)
    assert (config.load(tmp_path).settings.steps, config.load(tmp_path).settings.guidance) == (3, 2.0)
    for steps in (1000, 1001):
        config = type(CONFIGS["text"])(pretrained=str(tmp_path), steps=steps, timesteps=2000)
        if steps == 1000:
            assert config.load(tmp_path).times(steps).tolist() == list(range(999, -1, -1))
            continue
        with pytest.raises(RecipeError, match=r"model\.steps is 1001.*model\.steps=20"):
            config.load(tmp_path)
    for wrong in (0, 1):
        with pytest.raises(ValueError, match=f"steps is {wrong}"):
            StableDiffusion(steps=wrong)
    with pytest.raises(ValueError, match=r"steps is 30.*timesteps=20"):
        type(CONFIGS["class"])(steps=30, timesteps=20)


@pytest.mark.parametrize("steps", [0, 1, 1001, "20", None])
def test_stored_steps_that_no_trajectory_has_are_refused(steps: object, tmp_path: Path) -> None:
    small_model("class").float().save_pretrained(tmp_path)
    file = tmp_path / "unlearn.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "steps": steps}))
    with pytest.raises(RecipeError, match=rf"unlearn\.json: steps is {steps!r}.*steps=20"):
        Diffusion.from_pretrained(tmp_path)
    file.write_text(json.dumps({**content, "steps": 1000}))
    assert Diffusion.from_pretrained(tmp_path).settings.steps == 1000


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "scheduler"])
def test_a_folder_of_parts_that_lacks_one_is_refused(part: str, tmp_path: Path) -> None:
    small_model("text").float().save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(RecipeError, match=f"lacks {part}/"):
        Diffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_weights_that_are_cut_off_are_refused(part: str, tmp_path: Path) -> None:
    small_model("text").float().save_pretrained(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RecipeError, match="cannot be read"):
        Diffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("unlearn.json", "guidance", "x", "guidance is 'x'"),
        ("unlearn.json", "guidance", -3, "guidance is -3"),
        ("unlearn.json", "one_step", 5000, "one_step is 5000"),
        ("unlearn.json", "one_step", "a", "one_step is 'a'"),
        ("unlearn.json", "shape", [8, 8], r"shape is \(8, 8\)"),
        ("unlearn.json", "levels", 1, "levels is 1"),
        ("unlearn.json", "drop", 2, "drop is 2"),
        ("scheduler/scheduler_config.json", "prediction_type", "foo", "prediction_type is 'foo'"),
        ("text_encoder/config.json", "hidden_size", 64, "cannot be read"),
        ("text_encoder/config.json", "num_hidden_layers", 3, "no weights for"),
    ],
)
def test_a_folder_that_says_something_else_than_its_weights_is_refused(
    file: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    small_model("text").float().save_pretrained(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**content, key: value}))
    with pytest.raises(RecipeError, match=message):
        Diffusion.from_pretrained(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no diffusion model"):
        Diffusion.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(RecipeError, match="FluxPipeline"):
        Diffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pipeline_of_diffusers_is_read_and_written(dtype: torch.dtype, tmp_path: Path) -> None:
    """Stored in either precision it is read in single precision; its images are twice as wide as its latents."""
    small_pipeline().to(dtype).save_pretrained(tmp_path / "pipe")
    model = Diffusion.from_pretrained(tmp_path / "pipe")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.settings.shape == (3, 16, 16) and model.latent_shape == (3, 8, 8) and model.settings.guidance == 7.5
    batch = {
        "id": torch.arange(2),
        "image": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8),
        "tokens": model.prompts(["a red three", "a blue one"]).tokens,
    }
    loss = model.training_loss(batch, STREAM)
    assert loss.isfinite().all() and torch.equal(loss.flip(0), model.training_loss(flipped(batch), STREAM))
    assert model.sample(batch["id"], STREAM, like=batch)["image"].shape == (2, 3, 16, 16)
    (tmp_path / "again").mkdir()
    model.save_pretrained(tmp_path / "again")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "again", safety_checker=None)
    for name, value in pipe.unet.named_parameters():
        assert torch.equal(value, model.denoiser.get_parameter(name))
    read = Diffusion.from_pretrained(tmp_path / "again")
    assert torch.equal(read.training_loss(batch, STREAM), loss) and read.settings == model.settings


def flipped(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.flip(0) for key, value in batch.items()}
