"""The denoiser port: scores, samples, training loss, kinds of parameters, save and load."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from tests.toys.diffusion import CONFIGS, Conditioning, moved, small_model, small_splits
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.config import StableDiffusion
from unlearn.models.diffusion.parameter_kinds import KINDS
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.lora import Lora
from unlearn.models.scope import Kind

STREAM = Randomness(0, "test")
ALL: list[Conditioning] = ["class", "text", "dit"]
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
"""Of the linear schedule of DDPM, section 4."""


def states(model: Diffusion, n: int = 4) -> tuple[Tensor, Tensor]:
    """Some x_t and t."""
    ids = torch.arange(n)
    return STREAM.normal(ids, model.latent_shape, torch.float64), torch.tensor([0, 30, 400, 999])[:n]


def told_of(told: Conditioning, n: int = 4, split: str = "forget") -> dict[str, Tensor]:
    return small_splits(told)[split].batch(small_splits(told)[split].ids[:n])


def scales(model: Diffusion, t: Tensor) -> tuple[Tensor, Tensor]:
    kept = model.alphas.double()[t][:, None, None, None]
    return kept.sqrt(), (1 - kept).sqrt()


def test_the_schedule_is_that_of_the_paper() -> None:
    """Beta from 1e-4 to 0.02 in 1000 even steps, in single precision."""
    assert np.abs(small_model("class").alphas.double().numpy() - ABAR).max() < 1e-6


# --------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_whatever_the_network_predicts_the_score_is_the_noise(prediction: str) -> None:
    """By hand: eps = raw; (x_t - a x_0) / s; a v + s x_t, with a = sqrt(abar), s = sqrt(1 - abar).

    The last follows from x_t = a x_0 + s eps and v = a eps - s x_0: a v + s x_t = (a^2 + s^2) eps.
    """
    model = small_model("class", prediction=prediction)
    x, t = states(model)
    condition = model.condition(told_of("class"))
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
    x0, t = states(model)
    eps = torch.randn_like(x0)
    a, s = scales(model, t)
    x = model.noised(x0, eps, t)
    torch.testing.assert_close(x, a * x0 + s * eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.denoised(x, t, eps), x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("told", ALL)
def test_guidance_in_one_pass_is_that_of_two(told: Conditioning) -> None:
    """eps(c_n) + g (eps(c) - eps(c_n)); g = 0 is the score at nothing, g = 1 that at the condition."""
    model = small_model(told)
    x, t = states(model)
    condition = model.condition(told_of(told))
    with torch.no_grad():
        empty, full = model.predict(x, t, model.null(4)), model.predict(x, t, condition)
        assert (full - empty).abs().max() > 1e-3
        for g in (0.0, 1.0, 2.5):
            torch.testing.assert_close(model.guided(x, t, condition, g), empty + g * (full - empty))


@pytest.mark.parametrize("told", ALL)
def test_the_null_condition_is_of_its_own(told: Conditioning) -> None:
    """The class beyond the last, which is none of the data's; or the prompt without words."""
    model = small_model(told)
    x, t = states(model)
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
    x, t = states(model)
    condition = model.condition(told_of(told, split="retain"))
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
    with pytest.raises(RecipeError, match="knows no class 'ten'"):
        small_model("class").prompts(["3", "ten"])
    with pytest.raises(RecipeError, match="does not know the word 'threee'"):
        small_model("text").prompts(["a red three", "a red threee"])
    model, info = small_model("class"), small_splits("class")["retain"].dataset.info
    model.check_fits(info)
    with pytest.raises(RecipeError, match="built for shape"):
        model.check_fits({**info, "levels": 256})
    with pytest.raises(RecipeError, match="knows the classes"):
        model.check_fits({**info, "classes": ("a", "b")})
    with pytest.raises(RecipeError, match="without images"):
        model.latents({"id": torch.arange(2)}, STREAM)
    with pytest.raises(RecipeError, match="no one-step generator"):
        model.generated(torch.zeros(1, 1, 8, 8), model.null(1))


# -------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("told", ALL)
def test_a_trajectory_is_ddim_written_out(told: Conditioning) -> None:
    """Song et al., DDIM, 2021, eq. 12 with sigma = 0, every fifth of 20 timesteps; x_0 is clipped to [-1, 1], and eps
    is what then belongs to it. After the last step nothing is noise: x = x_0.
    """
    model = small_model(told, timesteps=20)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 20))
    x = 3 * STREAM.normal(torch.arange(3), model.latent_shape, torch.float64)
    condition = model.condition(told_of(told, 3))
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
    x, condition = states(model, 2)[0], model.prompts(["3", "8"])
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
    like = told_of(told, 3, "retain")
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
    z, t = states(model)[0], torch.full((4,), 700)
    a, s = scales(model, t)
    condition = model.condition(told_of("class"))
    wanted = (s * z - s * model.predict(s * z, t, condition)) / a
    found = model.generated(z, condition)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.draw(z, condition), model.images(found))


# ----------------------------------------------------------------------------------------------------------- data


def test_images_become_latents_and_come_back() -> None:
    model, batch = small_model("class"), told_of("class", 8)
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
    batch = told_of(told, 8)
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


# ---------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("told", "empty"),
    [
        ("text", set()),
        ("class", {"cross_attention", "cross_attention_kv", "cross_attention_q", "feed_forward"}),
        ("dit", {"cross_attention", "cross_attention_kv", "cross_attention_q"}),
    ],
)
def test_kinds_of_parameters(told: Conditioning, empty: set[str]) -> None:
    """By the type of the module; the kinds that make up the denoiser, and nothing else."""
    model = small_model(told)
    kinds = model.parameter_kinds()
    text = {"text_encoder", "text_encoder_mlp", "text_encoder_last_attention", "text_embeddings"}
    assert tuple(kinds) == KINDS
    assert {kind for kind, names in kinds.items() if not names} == empty | (set() if told == "text" else text)
    names = [name for name, _ in model.named_parameters()]
    assert kinds["denoiser"] + kinds["text_encoder"] == names
    assert sorted(kinds["cross_attention"] + kinds["not_cross_attention"]) == sorted(kinds["denoiser"])
    assert not set(kinds["self_attention"]) & set(kinds["cross_attention"])
    assert all(".to_k." in name or ".to_v." in name for name in kinds["cross_attention_kv"])
    if told == "text":
        assert set(kinds["cross_attention"]) == {name for name in names if ".attn2." in name}
        assert set(kinds["self_attention"]) == {name for name in names if ".attn1." in name}
        assert set(kinds["feed_forward"]) == {name for name in names if ".ff." in name}
        assert len(kinds["cross_attention_q"]) * 2 == len(kinds["cross_attention_kv"])
        last = kinds["text_encoder_last_attention"]
        assert len(last) == 8 and all(".layers.1.self_attn." in name for name in last)
        assert len(kinds["text_encoder_mlp"]) == 8 and len(kinds["text_embeddings"]) == 2


def test_a_scope_of_kinds_is_what_the_wrapper_names() -> None:
    model = small_model("text")
    kinds = model.parameter_kinds()
    assert Kind(["cross_attention_kv"]).select(model) == kinds["cross_attention_kv"]
    both = Kind(["text_encoder_mlp", "text_encoder_last_attention"]).select(model)
    assert set(both) == {*kinds["text_encoder_mlp"], *kinds["text_encoder_last_attention"]}
    mixed = Kind(["cross_attention", "embedding"]).select(model)
    assert set(mixed) == {*kinds["cross_attention"], *kinds["text_embeddings"]}
    with pytest.raises(RecipeError, match=r"no parameter of the kind 'cross_attention'\. It has: self_attention"):
        Kind(["cross_attention", "self_attention"]).select(small_model("class"))
    with pytest.raises(RecipeError, match="Did you mean: cross_attention"):
        Kind(["cross_atention"]).select(model)


@pytest.mark.parametrize(
    ("told", "kind"), [("text", "cross_attention_kv"), ("class", "self_attention"), ("dit", "feed_forward")]
)
def test_an_adapter_on_a_kind_changes_nothing_until_it_moves_and_merges(
    told: Conditioning, kind: str, tmp_path: Path
) -> None:
    model = small_model(told)
    before = dict(model.named_parameters())
    start = {name: value.detach().clone() for name, value in before.items()}
    layers = {name.removesuffix(".weight") for name in model.parameter_kinds()[kind] if before[name].ndim == 2}
    x, t = states(model)
    condition = model.condition(told_of(told))
    with torch.no_grad():
        score = model.predict(x, t, condition)
        scope = Lora(rank=2, kinds=[kind])
        scope.attach(model, STREAM)
        chosen = scope.select(model)
        assert {name.partition(".lora_")[0] for name in chosen} == layers
        assert set(chosen) <= set(Kind([kind]).select(model))  # the kinds are those of the adapted model as well
        torch.testing.assert_close(model.predict(x, t, condition), score, rtol=0, atol=1e-12)
        for name, parameter in model.named_parameters():
            if name in chosen:
                parameter += 0.2
        after = model.predict(x, t, condition)
        assert (after - score).abs().max() > 1e-3
        scope.detach(model, tmp_path)
        torch.testing.assert_close(model.predict(x, t, condition), after, rtol=1e-6, atol=1e-6)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}
    assert changed == {f"{layer}.weight" for layer in layers}
    with pytest.raises(RecipeError, match="no parameter of the kind 'text_encoder'"):
        Lora(kinds=["text_encoder"]).attach(small_model("class"), STREAM)


# ---------------------------------------------------------------------------------------------------------- files


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
    batch = told_of(told)
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
        with pytest.raises(RecipeError, match=r"model\.steps is 1001; .* 2 to 1000 .*Type model\.steps=20"):
            config.load(tmp_path)
    for wrong in (0, 1):
        with pytest.raises(ValueError, match=f"steps is {wrong}; it must be >= 2"):
            StableDiffusion(steps=wrong)
    with pytest.raises(ValueError, match="steps is 30; it must be <= timesteps=20"):
        type(CONFIGS["class"])(steps=30, timesteps=20)


@pytest.mark.parametrize("steps", [0, 1, 1001, "20", None])
def test_stored_steps_that_no_trajectory_has_are_refused(steps: object, tmp_path: Path) -> None:
    small_model("class").float().save_pretrained(tmp_path)
    file = tmp_path / "unlearn.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "steps": steps}))
    with pytest.raises(RecipeError, match=rf"unlearn\.json: steps is {steps!r}; .* 2 to 1000 .*Type steps=20"):
        Diffusion.from_pretrained(tmp_path)
    file.write_text(json.dumps({**content, "steps": 1000}))
    assert Diffusion.from_pretrained(tmp_path).settings.steps == 1000


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "scheduler"])
def test_a_folder_of_parts_that_lacks_one_is_refused(part: str, tmp_path: Path) -> None:
    small_model("text").float().save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(RecipeError, match=f"lacks {part}/, which a UNet2DConditionModel needs"):
        Diffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_weights_that_are_cut_off_are_refused(part: str, tmp_path: Path) -> None:
    small_model("text").float().save_pretrained(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RecipeError, match="holds no diffusion model that can be read"):
        Diffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("unlearn.json", "guidance", "x", "guidance is 'x'"),
        ("unlearn.json", "guidance", -3, "guidance is -3"),
        ("unlearn.json", "one_step", 5000, "one_step is 5000, and the model has 1000 timesteps"),
        ("unlearn.json", "one_step", "a", "one_step is 'a'"),
        ("unlearn.json", "shape", [8, 8], r"shape is \(8, 8\)"),
        ("unlearn.json", "levels", 1, "levels is 1"),
        ("unlearn.json", "drop", 2, "drop is 2"),
        ("scheduler/scheduler_config.json", "prediction_type", "foo", "prediction_type is 'foo'"),
        ("text_encoder/config.json", "hidden_size", 64, "can be read"),
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
    with pytest.raises(RecipeError, match="FluxPipeline; pipelines that can be read"):
        Diffusion.from_pretrained(tmp_path)


def small_pipeline() -> StableDiffusionPipeline:
    model = moved(small_model("text")).float()
    channels = {"in_channels": 3, "out_channels": 3, "latent_channels": 3, "norm_num_groups": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(4, 8), **two_levels(), **channels).eval()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text.encoders[0],
        tokenizer=model.text.tokenizers[0],
        unet=model.denoiser,
        scheduler=DDIMScheduler(
            clip_sample=False, steps_offset=1, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def two_levels() -> dict[str, tuple[str, ...]]:
    return {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


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


def test_encoded_prompts_stand_for_prompts() -> None:
    model = small_model("text")
    x, t = states(model)
    condition = model.condition(told_of("text"))
    encoded = model.encode(condition)
    assert isinstance(encoded, Condition) and encoded.states.shape == (4, 8, 16)
    assert torch.equal(model.predict(x, t, encoded), model.predict(x, t, condition))
