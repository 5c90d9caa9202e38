"""Trajectories, samples and the one-step generator."""

import numpy as np
import pytest
import torch

from tests.toys.diffusion import Conditioning, small_model, some_items, some_states
from unlearn.core.randomness import Randomness

STREAM = Randomness(0, "test")
ALL: list[Conditioning] = ["class", "text", "dit"]


@pytest.mark.parametrize("told", ALL)
def test_a_trajectory_is_ddim_written_out(told: Conditioning) -> None:
    """Song et al., DDIM, 2021, eq. 12 with sigma = 0, every fifth of 20 timesteps; x_0 is clipped to [-1, 1], and eps
    is what then belongs to it. After the last step nothing is noise: x = x_0.
    """
    model = small_model(told, timesteps=20)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 20))
    x = 3 * STREAM.normal(torch.arange(3), model.latent_shape, torch.float64)
    condition = model.condition(some_items(told, 3))
    times = [15, 10, 5, 0]
    assert model.times(4).tolist() == times
    with torch.no_grad():
        found = list(model.trajectory(x, condition, guidance=2.0, steps=4))
        wanted, clipped = x.numpy(), False
        for t, after in zip(times, [10, 5, 0, None], strict=True):
            at = torch.full((3,), t)
            eps = model.guided(torch.from_numpy(wanted), at, condition, 2.0).numpy()
            x0 = (wanted - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
            clipped |= bool((np.abs(x0) > 1).any())
            x0 = x0.clip(-1, 1)
            eps = (wanted - np.sqrt(abar[t]) * x0) / np.sqrt(1 - abar[t])
            kept = 1.0 if after is None else abar[after]
            wanted = np.sqrt(kept) * x0 + np.sqrt(1 - kept) * eps
    assert clipped and [number for number, _ in found] == [0, 1, 2, 3]
    torch.testing.assert_close(found[-1][1], torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)


def test_a_trajectory_goes_on_where_it_stood_and_computes_no_more_than_is_asked_for() -> None:
    model = small_model("class")
    x, condition = some_states(model, 2)[0], model.prompts(["3", "8"])
    passes: list[int] = []
    model.denoiser.register_forward_pre_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        whole = [after for _, after in model.trajectory(x, condition, steps=5)]
        assert len(passes) == 5  # guidance in one pass
        rest = [after for _, after in model.trajectory(whole[2], condition, steps=5, first=3)]
        assert torch.equal(rest[-1], whole[-1]) and len(rest) == 2 and len(passes) == 7
        for number, _ in model.trajectory(x, condition, steps=5):
            if number == 1:
                break
    assert len(passes) == 9


@pytest.mark.parametrize("told", ALL)
def test_a_sample_is_of_its_id_and_condition(told: Conditioning) -> None:
    model = small_model(told)
    model.settings.steps = 3
    ids = torch.tensor([4, 9, 2])
    like = some_items(told, 3, "retain")
    found = model.sample(ids, STREAM, like=like)
    assert torch.equal(found["id"], ids) and found["image"].dtype == torch.uint8
    assert found["image"].shape == (3, *model.settings.shape) and found["image"].max() <= 16
    order = torch.tensor([2, 0, 1])
    again = model.sample(ids[order], STREAM, like={key: value[order] for key, value in like.items()})
    assert torch.equal(again["image"], found["image"][order])
    free = model.sample(ids, STREAM)
    assert torch.equal(free["image"], model.draw(model.noise(ids, STREAM), model.null(3)))
    guided = model.draw(model.noise(ids, STREAM), model.condition(like))
    assert torch.equal(guided, found["image"])
    assert not torch.equal(free["image"], found["image"])
    assert not torch.equal(model.sample(ids, Randomness(1, "test"))["image"], free["image"])


def test_a_one_step_generator_noises_an_empty_image_and_takes_the_noise_out() -> None:
    """x = s z at the one timestep; x_0 = (x - s eps(x)) / a."""
    model = small_model("class")
    model.settings.one_step = 700
    z, t = some_states(model)[0], torch.full((4,), 700)
    a, s = model.alphas[700].double().sqrt(), (1 - model.alphas[700].double()).sqrt()
    condition = model.condition(some_items("class"))
    wanted = (s * z - s * model.predict(s * z, t, condition)) / a
    found = model.generated(z, condition)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.draw(z, condition), model.images(found))
