"""Pipelines with odd parts: read as they are meant, or refused with a sentence; what is saved is what came."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from tests.toys.pipelines import stable_diffusion, stable_diffusion_xl
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.diffusion.wrapper import Diffusion

KEPT = "safety_checker"
UNET, TEXT, VAE = "unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("plain") / "pipeline")


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl(tmp_path_factory.mktemp("xl") / "pipeline")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "pipeline"))


def changed(file: Path, **settings: Any) -> None:
    """Change settings of a JSON file; None is a value."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def scheduler(folder: Path, made: str, **settings: Any) -> None:
    """Replace the scheduler of a pipeline by one of another class."""
    changed(folder / "model_index.json", scheduler=["diffusers", made])
    shutil.rmtree(folder / "scheduler")
    getattr(diffusers, made)(**settings).save_pretrained(folder / "scheduler")


def refused(folder: Path, *words: str) -> None:
    """Both ways of reading say the same: without weights (``--check``), and with them."""
    for weights in (False, True):
        with pytest.raises(RecipeError) as caught:
            Diffusion.from_pretrained(folder, weights)
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("made", "settings", "words"),
    [
        ("EDMEulerScheduler", {}, "EDMEulerScheduler, which has no abar_t"),
        ("EDMDPMSolverMultistepScheduler", {}, "EDMDPMSolverMultistepScheduler, which has no abar_t"),
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler, which has no abar_t"),
        ("CMStochasticIterativeScheduler", {}, "which has no abar_t"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas: True"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type: continuous"),
        (
            "DDIMScheduler",
            {"rescale_betas_zero_snr": True},
            "Type model.pretrained=FOLDER of a pipeline that was trained with rescale_betas_zero_snr: false",
        ),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("DDPMScheduler", {"trained_betas": [0.1, 0.2]}, "2 values of abar_t, and 1000"),
    ],
)
def test_a_scheduler_with_other_noise_is_refused_by_name(
    made: str, settings: dict[str, Any], words: str, folder: Path
) -> None:
    scheduler(folder, made, **settings)
    refused(folder, words)


def test_a_scheduler_that_calls_itself_otherwise_than_the_index_is_refused(folder: Path) -> None:
    changed(folder / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
    refused(folder, "EDMEulerScheduler")


@pytest.mark.parametrize("made", ["DDPMScheduler", "LCMScheduler", "CogVideoXDDIMScheduler", "UniPCMultistepScheduler"])
def test_the_schedule_is_that_of_the_schedulers_own_class(made: str, folder: Path) -> None:
    """CogVideoX shifts the signal-to-noise ratio, which DDPM with the same betas does not."""
    scheduler(folder, made, num_train_timesteps=500, timestep_spacing="leading")
    model = Diffusion.from_pretrained(folder)
    theirs = getattr(diffusers, made).from_pretrained(folder / "scheduler")
    assert torch.equal(model.alphas, theirs.alphas_cumprod.float()) and model.timesteps == 500
    # one DDIM step at a constant eps lands where abar_t of this schedule says: eq. 12 of Song et al. at sigma = 0
    x, eps = torch.randn(1, *model.latent_shape), torch.randn(1, *model.latent_shape)
    first, second = model.times(2).tolist()
    (_, after), _ = model.schedule.trajectory(x, lambda *_: eps, 2, 0, clip=False)
    now, then = theirs.alphas_cumprod[first].float(), theirs.alphas_cumprod[second].float()
    clean = (x - (1 - now).sqrt() * eps) / now.sqrt()
    torch.testing.assert_close(after, then.sqrt() * clean + (1 - then).sqrt() * eps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "settings", "words"),
    [
        ("vae", {"shift_factor": 0.1}, ["shift_factor=0.1"]),
        ("vae", {"latents_mean": [0.0] * 4, "latents_std": [2.0] * 4}, ["latents_mean", "latents_std"]),
        ("vae", {"another_factor": 3.5}, ["another_factor=3.5"]),
        ("vae", {"scaling_factor": 0}, ["scaling_factor is 0"]),
        ("vae", {"scaling_factor": "x"}, ["scaling_factor is 'x'"]),
        ("vae", {"scaling_factor": [1, 1, 1, 1]}, ["scaling_factor is [1, 1, 1, 1]"]),
        ("vae", {"latent_channels": 8}, ["in_channels of the denoiser is 4", "latent_channels are 8"]),
        ("vae", {"in_channels": 1}, ["in_channels of the autoencoder is 1", "are 3"]),
        ("vae", {"_class_name": "AutoencoderTiny"}, ["AutoencoderTiny"]),
        ("unet", {"in_channels": 9}, ["in_channels of the denoiser is 9", "latent_channels are 4"]),
        ("unet", {"out_channels": 8}, ["out_channels of the denoiser is 8", "latent_channels are 4"]),
        ("unet", {"cross_attention_dim": 24}, ["cross_attention_dim of the denoiser is 24", "are 16"]),
        ("unet", {"sample_size": None}, ["sample_size=None"]),
        ("unet", {"time_cond_proj_dim": 8}, ["time_embedding.cond_proj"]),
        ("unet", {"num_class_embeds": 3}, ["cannot be run"]),
        (
            "unet",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 32,
            },
            ["addition_embed_type of the denoiser is text_time"],
        ),
        ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantised"]),
        ("text_encoder", {"hidden_size": 32}, ["16", "32"]),
        ("text_encoder", {"max_position_embeddings": 20}, ["77", "20"]),
        ("text_encoder", {"vocab_size": 4}, ["largest token of the tokenizer is 8", "at most 3"]),
    ],
)
def test_configurations_that_do_not_fit_are_refused_with_both_numbers(
    file: str, settings: dict[str, Any], words: list[str], folder: Path
) -> None:
    changed(folder / file / "config.json", **settings)
    with pytest.raises(RecipeError) as caught:
        Diffusion.from_pretrained(folder, weights=False)
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(RecipeError):
        Diffusion.from_pretrained(folder)


def test_the_pooled_prompt_of_xl_has_the_width_that_the_denoiser_takes(xl: Path, tmp_path: Path) -> None:
    shutil.copytree(xl, tmp_path / "xl")
    changed(tmp_path / "xl" / "unet" / "config.json", projection_class_embeddings_input_dim=40)
    with pytest.raises(RecipeError, match=r"projection_class_embeddings_input_dim of the denoiser is 40.*is 32"):
        Diffusion.from_pretrained(tmp_path / "xl", weights=False)


@torch.no_grad()
def test_the_statistics_of_latents_are_used_as_the_pipeline_uses_them(xl: Path, tmp_path: Path) -> None:
    """SDXL's pipeline decodes latents * std / scaling_factor + mean."""
    shutil.copytree(xl, tmp_path / "xl")
    mean, deviation = [0.1, -0.2, 0.3, 0.4], [1.5, 2.0, 2.5, 0.5]
    changed(tmp_path / "xl" / "vae" / "config.json", latents_mean=mean, latents_std=deviation, scaling_factor=0.5)
    model = Diffusion.from_pretrained(tmp_path / "xl")
    x0 = torch.randn(1, 4, 8, 8)
    wanted = x0 * torch.tensor(deviation).view(1, 4, 1, 1) / 0.5 + torch.tensor(mean).view(1, 4, 1, 1)
    decoded = ((model.vae.decode(wanted).sample + 1) * 255 / 2).round().clamp(0, 255)
    assert torch.equal(model.images(x0).float(), decoded)
    batch = {"id": torch.tensor([0]), "image": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}
    encoded = model.vae.encode(torch.full((1, 3, 16, 16), -1.0)).latent_dist
    noise = Randomness(0, "x").child("autoencoder").normal(torch.tensor([0]), (4, 8, 8), torch.float32)
    raw = encoded.mean + encoded.std * noise
    found = model.latents(batch, Randomness(0, "x"))
    back = found * torch.tensor(deviation).view(1, 4, 1, 1) / 0.5 + torch.tensor(mean).view(1, 4, 1, 1)
    torch.testing.assert_close(back, raw, rtol=1e-4, atol=1e-4)
    changed(tmp_path / "xl" / "vae" / "config.json", latents_std=[1.0])
    with pytest.raises(RecipeError, match="4 latent channels"):
        Diffusion.from_pretrained(tmp_path / "xl", weights=False)


def without(file: Path) -> str:
    """Remove the last tensor of a file, and return its name."""
    weights = load_file(file)
    name = max(weights)
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    return name


def not_a_number(file: Path) -> str:
    """Make a value of a file nan, and return its tensor's name."""
    weights = load_file(file)
    name = min(weights)
    weights[name].flatten()[0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    return name


@pytest.mark.parametrize("part", [UNET, TEXT, VAE])
@pytest.mark.parametrize("spoil", [without, not_a_number])
def test_weights_that_are_missing_or_no_numbers_are_named(
    spoil: Callable[[Path], str], part: str, folder: Path
) -> None:
    name = spoil(folder / f"{part}.safetensors")
    with pytest.raises(RecipeError) as caught:
        Diffusion.from_pretrained(folder)
    assert name.removeprefix("text_model.") in str(caught.value) and part.split("/")[0] in str(caught.value)


def truncated(folder: Path) -> str:
    file = folder / f"{UNET}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "cannot be read"


def pointer(folder: Path) -> str:
    (folder / f"{TEXT}.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return "git-lfs"


def missing(folder: Path) -> str:
    (folder / f"{VAE}.safetensors").unlink()
    return "holds no weights"


def shard_outside(folder: Path) -> str:
    (folder.parent / "secret.safetensors").write_bytes((folder / f"{UNET}.safetensors").read_bytes())
    names = load_file(folder / f"{UNET}.safetensors")
    (folder / f"{UNET}.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../../secret.safetensors")}
    (folder / f"{UNET}.safetensors.index.json").write_text(json.dumps(index))
    return "nothing outside of the given folder is read"


def component_outside(folder: Path) -> str:
    shutil.copytree(folder / "vae", folder.parent / "elsewhere")
    changed(folder / "model_index.json", **{"../elsewhere": ["diffusers", "AutoencoderKL"]})
    return "no component of a pipeline"


def adapter_outside(folder: Path) -> str:
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere"}')
    return "adapter of peft"


def own_pipeline(folder: Path) -> str:
    (folder / "pipeline.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')")
    changed(folder / "model_index.json", _class_name=["pipeline", "MyPipeline"])
    return "code in a folder is never run"


def own_component(folder: Path) -> str:
    (folder / "unet" / "mine.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')")
    changed(folder / "model_index.json", unet=["mine", "MyUNet"])
    return "code in a folder is never run"


def own_text_encoder(folder: Path) -> str:
    (folder / "text_encoder" / "mine.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')")
    changed(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "mine.Mine"})
    return "code in a folder is never run"


def other_text_encoder(folder: Path) -> str:
    changed(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    return "T5EncoderModel"


def broken_index(folder: Path) -> str:
    (folder / "model_index.json").write_text("[1, 2")
    return "cannot be read"


def lone_index(folder: Path) -> str:
    (folder / "model_index.json").write_text("[]")
    return "not an object"


BROKEN = [
    *(truncated, pointer, missing, shard_outside, component_outside, adapter_outside),
    *(own_pipeline, own_component, own_text_encoder, other_text_encoder, broken_index, lone_index),
]


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_broken_folder_is_one_sentence(spoil: Callable[[Path], str], folder: Path) -> None:
    words = spoil(folder)
    with pytest.raises(RecipeError) as caught:
        Diffusion.from_pretrained(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder.parent / "ran").exists()


def test_the_scheduler_of_parts_is_read_by_its_own_class(folder: Path, tmp_path: Path) -> None:
    model = Diffusion.from_pretrained(folder)
    model.pipeline = None  # as a model that was built here is saved
    (tmp_path / "parts").mkdir()
    model.save_pretrained(tmp_path / "parts")
    DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "parts" / "scheduler")
    assert Diffusion.from_pretrained(tmp_path / "parts").timesteps == 1000
    diffusers.EDMEulerScheduler().save_pretrained(tmp_path / "parts" / "scheduler")
    refused(tmp_path / "parts", "EDMEulerScheduler")
