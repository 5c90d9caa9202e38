"""The timesteps of a trajectory are those of diffusers, and each step leads to the next of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import pytest
import torch

from tests.models.diffusion.test_folders_of_strangers import refused, scheduler
from tests.toys.pipelines import stable_diffusion
from unlearn.core.errors import RecipeError
from unlearn.models.diffusion.wrapper import Diffusion


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("plain") / "pipeline")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "pipeline"))


SPACED = [
    ("EulerDiscreteScheduler", "linspace"),
    ("DPMSolverMultistepScheduler", "trailing"),
    ("DDPMScheduler", "linspace"),
]


@pytest.mark.parametrize(("made", "spacing"), SPACED)
def test_every_step_leads_to_the_next_timestep_however_they_are_spaced(made: str, spacing: str, folder: Path) -> None:
    """Eq. 12 of Song et al. at sigma = 0, over timesteps as diffusers spaces them: 999, 856, ... for 8 of 1000."""
    scheduler(folder, made, timestep_spacing=spacing)
    model = Diffusion.from_pretrained(folder)
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(7)
    times = model.times(7).tolist()
    assert times == theirs.timesteps.tolist() and times[0] == 999
    x, alphas = torch.randn(1, *model.latent_shape), model.alphas.double()
    noises = torch.randn(7, *x.shape)
    found = [after for _, after in model.schedule.trajectory(x, lambda n, *_: noises[n], 7, 0, clip=False)]
    wanted = x.double()
    for number, after in enumerate(found):
        now = alphas[times[number]]
        then = alphas[times[number + 1]] if number < 6 else torch.ones_like(now)
        clean = (wanted - (1 - now).sqrt() * noises[number]) / now.sqrt()
        wanted = then.sqrt() * clean + (1 - then).sqrt() * noises[number]
        torch.testing.assert_close(after.double(), wanted, rtol=1e-4, atol=1e-4)
    later = model.schedule.trajectory(found[3], lambda n, *_: noises[n], 7, 4, clip=False)
    assert torch.equal([after for _, after in later][-1], found[-1])


@pytest.mark.parametrize("steps", [4, 20, 30])
def test_the_steps_of_ddim_are_those_of_diffusers(steps: int, folder: Path) -> None:
    scheduler(folder, "DDIMScheduler", timestep_spacing="leading", steps_offset=1, clip_sample=False)
    model = Diffusion.from_pretrained(folder)
    theirs = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler", set_alpha_to_one=True)
    theirs.set_timesteps(steps)
    x = wanted = torch.randn(1, *model.latent_shape)
    for (_, after), t in zip(
        model.schedule.trajectory(x, lambda _, x, t: x, steps, 0, False), theirs.timesteps, strict=True
    ):
        wanted = theirs.step(wanted, t, wanted, use_clipped_model_output=True).prev_sample
        assert torch.equal(after, wanted)


def test_steps_that_begin_behind_the_last_timestep_are_refused(folder: Path) -> None:
    scheduler(folder, "DDIMScheduler", timestep_spacing="leading", steps_offset=1, num_train_timesteps=10)
    model = Diffusion.from_pretrained(folder)
    assert model.times(5).tolist() == [9, 7, 5, 3, 1]
    with pytest.raises(RecipeError, match=r"10 steps begins at t = 10.*steps_offset.*Type fewer steps, model\.steps=5"):
        model.times(10)


@pytest.mark.parametrize(
    ("made", "spacing"),
    [("DDIMScheduler", "linspace"), ("DDIMParallelScheduler", "linspace"), ("EulerDiscreteScheduler", "exponential")],
)
def test_a_spacing_whose_steps_do_not_meet_is_refused(made: str, spacing: str, folder: Path) -> None:
    scheduler(folder, made, timestep_spacing=spacing)
    refused(folder, f"timestep_spacing: {spacing}", "Write leading or trailing")
