"""Scores, conditions and the training loss of the denoiser, each against its formula."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import Conditioning, small_model, small_splits, some_items, some_states
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.wrapper import Diffusion

STREAM = Randomness(0, "test")
ALL: list[Conditioning] = ["class", "text", "dit"]
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
"""Of the linear schedule of DDPM, section 4."""


def scales(model: Diffusion, t: Tensor) -> tuple[Tensor, Tensor]:
    kept = model.alphas.double()[t][:, None, None, None]
    return kept.sqrt(), (1 - kept).sqrt()


def test_the_schedule_is_that_of_the_paper() -> None:
    """Beta from 1e-4 to 0.02 in 1000 even steps, in single precision."""
    assert np.abs(small_model("class").alphas.double().numpy() - ABAR).max() < 1e-6


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_whatever_the_network_predicts_the_score_is_the_noise(prediction: str) -> None:
    """By hand: eps = raw; (x_t - a x_0) / s; a v + s x_t, with a = sqrt(abar), s = sqrt(1 - abar).

    The last follows from x_t = a x_0 + s eps and v = a eps - s x_0: a v + s x_t = (a^2 + s^2) eps.
    """
    model = small_model("class", prediction=prediction)
    x, t = some_states(model)
    condition = model.condition(some_items("class"))
    with torch.no_grad():
        raw = model.denoiser(x, timestep=t, class_labels=condition.classes).sample
        found = model.predict(x, t, condition)
    a, s = scales(model, t)
    wanted = {"epsilon": raw, "sample": (x - a * raw) / s, "v_prediction": a * raw + s * x}[prediction]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    x0, eps = torch.randn_like(x), torch.randn_like(x)
    torch.testing.assert_close(a * (a * eps - s * x0) + s * (a * x0 + s * eps), eps)


def test_noise_is_put_in_and_taken_out() -> None:
    """x_t = a x_0 + s eps; taking eps out again gives x_0."""
    model = small_model("class")
    x0, t = some_states(model)
    eps = torch.randn_like(x0)
    a, s = scales(model, t)
    x = model.noised(x0, eps, t)
    torch.testing.assert_close(x, a * x0 + s * eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.denoised(x, t, eps), x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("told", ALL)
def test_guidance_in_one_pass_is_that_of_two(told: Conditioning) -> None:
    """eps(c_n) + g (eps(c) - eps(c_n)); g = 0 is the score at nothing, g = 1 that at the condition."""
    model = small_model(told)
    x, t = some_states(model)
    condition = model.condition(some_items(told))
    with torch.no_grad():
        empty, full = model.predict(x, t, model.null(4)), model.predict(x, t, condition)
        assert (full - empty).abs().max() > 1e-3
        for g in (0.0, 1.0, 2.5):
            torch.testing.assert_close(model.guided(x, t, condition, g), empty + g * (full - empty))


@pytest.mark.parametrize("told", ALL)
def test_the_null_condition_is_of_its_own(told: Conditioning) -> None:
    """The class beyond the last, which is none of the data's; or the prompt without words."""
    model = small_model(told)
    x, t = some_states(model)
    null = model.null(2)
    if told == "text":
        assert null.tokens.tolist() == [[[0, 1, 1, 1, 1, 1, 1, 1]]] * 2  # start, then end and padding
    else:
        assert null.classes.tolist() == [10, 10]
    with torch.no_grad():
        scores = [model.predict(x, t, model.null(4))]
        names = ["a red three", "a blue eight"] if told == "text" else list("0123456789")
        scores += [model.predict(x, t, model.prompts([name] * 4)) for name in names]
    for index, first in enumerate(scores):
        assert all((first - other).abs().max() > 1e-5 for other in scores[:index])


@pytest.mark.parametrize("told", ALL)
def test_a_score_does_not_depend_on_the_company(told: Conditioning) -> None:
    model = small_model(told)
    x, t = some_states(model)
    condition = model.condition(some_items(told, split="retain"))
    with torch.no_grad():
        together = model.predict(x, t, condition)
        alone = torch.cat([model.predict(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_prompts_are_encoded_once_each_and_the_gradient_reaches_the_encoder() -> None:
    model = small_model("text")
    condition = model.prompts(["a red three", "a blue eight", "a red three"])
    calls: list[int] = []
    handle = model.text.encoders[0].register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    encoded = model.encode(condition)
    handle.remove()
    assert calls == [2] and torch.equal(encoded.states[0], encoded.states[2])
    assert model.encode(encoded) is encoded
    encoded.states.sum().backward()
    assert all(p.grad is not None for p in model.text.parameters())


def test_names_that_the_model_does_not_know_are_refused() -> None:
    with pytest.raises(RecipeError, match="'ten'"):
        small_model("class").prompts(["3", "ten"])
    with pytest.raises(RecipeError, match="'threee'"):
        small_model("text").prompts(["a red three", "a red threee"])
    model, info = small_model("class"), small_splits("class")["retain"].dataset.info
    model.check_fits(info)
    with pytest.raises(RecipeError, match="shape"):
        model.check_fits({**info, "levels": 256})
    with pytest.raises(RecipeError, match="classes"):
        model.check_fits({**info, "classes": ("a", "b")})
    with pytest.raises(RecipeError, match="without images"):
        model.latents({"id": torch.arange(2)}, STREAM)
    with pytest.raises(RecipeError, match="no one-step generator"):
        model.generated(torch.zeros(1, 1, 8, 8), model.null(1))


def test_encoded_prompts_stand_for_prompts() -> None:
    model = small_model("text")
    x, t = some_states(model)
    condition = model.condition(some_items("text"))
    encoded = model.encode(condition)
    assert isinstance(encoded, Condition) and encoded.states.shape == (4, 8, 16)
    assert torch.equal(model.predict(x, t, encoded), model.predict(x, t, condition))


def test_images_become_latents_and_come_back() -> None:
    model, batch = small_model("class"), some_items("class", 8)
    x0 = model.latents(batch, STREAM)
    assert x0.min() == -1 and x0.max() == 1 and x0.dtype == torch.float64
    torch.testing.assert_close(x0, batch["image"].double() / 8 - 1)
    assert torch.equal(model.images(x0), batch["image"])
    assert model.images(torch.tensor([[[[2.0, -3.0, float("nan"), 0.0]]]])).flatten().tolist() == [16, 0, 0, 8]


@pytest.mark.parametrize("told", ALL)
def test_the_training_loss_is_the_formula_and_each_items_own(told: Conditioning) -> None:
    """mean (eps - eps(x_t, t, c))^2 with t, eps and the dropped conditions drawn by the item's id."""
    model = small_model(told)
    model.settings.drop = 0.5
    batch = some_items(told, 8)
    found = model.training_loss(batch, STREAM)
    ids = batch["id"]
    t = STREAM.child("t").integers(ids, 1000)
    eps = STREAM.child("noise").normal(ids, model.latent_shape, torch.float64)
    dropped = STREAM.child("drop").uniform(ids, ()) < 0.5
    assert 0 < dropped.sum() < 8
    a, s = scales(model, t)
    x = a * model.latents(batch, STREAM) + s * eps
    condition, null = model.condition(batch), model.null(8)
    scores = [model.predict(x, t, each) for each in (condition, null)]
    wanted = torch.where(dropped[:, None, None, None], scores[1], scores[0])
    torch.testing.assert_close(found, (wanted - eps).square().flatten(1).mean(1), rtol=1e-6, atol=1e-6)
    order = torch.tensor([3, 0, 2, 1, 7, 6, 5, 4])
    shuffled = model.training_loss({key: value[order] for key, value in batch.items()}, STREAM)
    alone = [model.training_loss({key: value[i : i + 1] for key, value in batch.items()}, STREAM) for i in range(8)]
    torch.testing.assert_close(shuffled, found[order])
    torch.testing.assert_close(torch.cat(alone), found)
    assert (model.training_loss(batch, STREAM.at(1)) - found).abs().min() > 1e-4
