"""Low-rank adapters on two families: nothing changes at first, only they move, and merging keeps the outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel
from safetensors.torch import load_file

from tests.models.language.test_architectures import READ, small
from tests.objectives.edits.test_uce import xl_model
from tests.toys.diffusion import Conditioning, small_model, small_splits
from tests.toys.flow import digits_splits, small_glow
from tests.toys.language import encoder, tiny, tiny_splits
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.core.reference_model import AdapterDisabledReference, ReferenceModel
from unlearn.models.flow.config import AutoregressiveFlowConfig
from unlearn.models.language.wrapper import Language
from unlearn.models.lora import Lora

STREAM = Randomness(0, "test")


def subjects() -> dict[str, tuple[Any, Any]]:
    digits, texts = digits_splits()["forget"], tiny_splits()["forget"]
    return {
        "flow": (small_glow(digits_splits()), digits.batch(digits.ids[:4])),
        "language": (tiny(dtype=torch.float64), texts.batch(texts.ids)),
    }


def moved(model: Any, scope: Lora) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in set(scope.select(model)):
                parameter += 0.05


@pytest.mark.parametrize("family", ["flow", "language"])
def test_an_adapter_changes_nothing_until_it_moves_and_merges_into_the_weights(family: str, tmp_path: Path) -> None:
    model, batch = subjects()[family]
    names = [name for name, _ in model.named_parameters()]
    before = model.log_prob(batch, STREAM)
    scope = Lora(rank=2)
    scope.attach(model, STREAM)
    assert torch.equal(model.log_prob(batch, STREAM), before)
    moved(model, scope)
    after = model.log_prob(batch, STREAM)
    assert (after - before).abs().max() > 1e-3
    reference = AdapterDisabledReference(model, lambda: scope.off(model))()
    torch.testing.assert_close(reference.log_prob(batch, STREAM), before, rtol=0, atol=1e-12)
    assert torch.equal(model.log_prob(batch, STREAM), after)  # it is on again
    scope.detach(model, tmp_path)
    torch.testing.assert_close(model.log_prob(batch, STREAM), after, rtol=0, atol=1e-9)
    assert [name for name, _ in model.named_parameters()] == names


def test_a_masked_layer_keeps_its_mask() -> None:
    """An autoregressive flow with an adapter is a density still: its log |det J| is that of its Jacobian."""
    model = AutoregressiveFlowConfig(depth=2, width=8).build({"shape": (5,)}, STREAM).double()
    scope = Lora(rank=2)
    scope.attach(model, STREAM)
    moved(model, scope)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[None]
    _, stated = model.flow._transform(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.flow._transform(v)[0][0], x)[:, 0]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, stated[0].detach())


@pytest.mark.parametrize("kind", ["gpt2", "llama4_text"])
def test_layers_of_transformers_own_are_adapted_and_merged(kind: str, tmp_path: Path) -> None:
    """GPT-2's are transposed; Llama 4's routers are linear layers that return two things."""
    model, batch = Language(small(kind), encoder()), tiny_splits()["forget"].batch(tiny_splits()["forget"].ids)
    before, scope = model.log_prob(batch, STREAM), Lora(rank=2)
    scope.attach(model, STREAM)
    moved(model, scope)
    after = model.log_prob(batch, STREAM)
    assert (after - before).abs().max() > 1e-2
    with scope.off(model):
        torch.testing.assert_close(model.log_prob(batch, STREAM), before)
    scope.detach(model, tmp_path)
    torch.testing.assert_close(model.log_prob(batch, STREAM), after, rtol=1e-4, atol=1e-4)


def test_only_the_adapter_gets_a_gradient() -> None:
    model, batch = subjects()["language"]
    scope = Lora(rank=2)
    scope.attach(model, STREAM)
    chosen = set(scope.select(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    moved(model, scope)  # B starts at zero, where A has no gradient yet
    model.log_prob(batch, STREAM).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(
        (gradient is not None and bool(gradient.any())) == (name in chosen) for name, gradient in gradients.items()
    )
    assert not any("lm_head" in name for name in chosen)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # inside peft
def test_peft_reads_the_adapter_that_was_kept(tmp_path: Path) -> None:
    model, batch = subjects()["language"]
    scope = Lora(rank=2, keep_adapter=True)
    scope.attach(model, STREAM)
    moved(model, scope)
    after = model.log_prob(batch, STREAM)
    scope.detach(model, tmp_path)
    fresh = tiny(dtype=torch.float64)
    fresh.model = PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter")).double().merge_and_unload()
    torch.testing.assert_close(fresh.log_prob(batch, STREAM), after, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "left"), [("falcon_h1", "mamba.out_proj"), ("mamba", "mixer.out_proj")])
@pytest.mark.filterwarnings("ignore")
def test_what_peft_refuses_is_left_out_and_named(
    kind: str, left: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So peft reads what is kept, on plain transformers. Mamba does not run dt_proj, and reads its weight."""
    batch = tiny_splits()["forget"].batch(tiny_splits()["forget"].ids)
    model, fresh = (Language(small(kind, **READ[kind]), encoder()) for _ in range(2))
    scope = Lora(rank=2, exclude=["lm_head", "dt_proj"], keep_adapter=True)
    scope.attach(model, STREAM)
    assert f"{left} " in caplog.text and "peft refuses" in caplog.text
    assert not any("out_proj" in name for name in scope.select(model))
    with torch.no_grad():
        for number, name in enumerate(scope.select(model)):
            dict(model.named_parameters())[name].add_(0.01 + 0.001 * (number % 7))
    after = model.log_prob(batch, STREAM)
    scope.detach(model, tmp_path)
    fresh.model = PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter")).merge_and_unload()
    torch.testing.assert_close(fresh.log_prob(batch, STREAM), after, rtol=1e-4, atol=1e-4)
    with pytest.raises(RecipeError, match="no linear or convolution layer but those that peft refuses"):
        Lora(rank=2, include=["out_proj"]).attach(fresh, STREAM)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
@pytest.mark.filterwarnings("ignore")
def test_experts_that_stay_as_they_are_are_named(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    Lora(rank=2).attach(Language(small(kind), encoder()), STREAM)
    assert "leaves model.model.layers.0.mlp.experts.gate_up_proj, " in caplog.text and "and 1 more as" in caplog.text
    caplog.clear()
    Lora(rank=2, include=["_proj"], exclude=["experts"]).attach(Language(small(kind), encoder()), STREAM)
    assert "leaves" not in caplog.text


def pipeline(model: Any) -> StableDiffusionPipeline:
    """The parts of a text-conditional model as diffusers knows them."""
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=model.text.encoders[0],
        tokenizer=model.text.tokenizers[0],
        unet=model.denoiser,
        scheduler=DDPMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("kinds", [None, ["cross_attention"], ["text_encoder_mlp"]])
def test_diffusers_reads_the_adapter_of_a_model_that_takes_prompts(kinds: list[str] | None, tmp_path: Path) -> None:
    """On the U-Net and the text encoder, on one of them; linear and convolution layers; alpha is not the rank."""
    model, fresh = small_model("text").float(), small_model("text").float()
    x = STREAM.normal(torch.arange(4), model.latent_shape, torch.float32)
    t, told = torch.tensor([0, 30, 400, 999]), small_splits("text")["forget"].batch(small_splits("text")["forget"].ids)
    condition = model.condition({"tokens": told["tokens"][:4]})
    scope = Lora(rank=2, alpha=3, kinds=kinds, keep_adapter=True)
    with torch.no_grad():
        before = fresh.predict(x, t, condition)
        scope.attach(model, STREAM)
        moved(model, scope)
        scope.detach(model, tmp_path)
        after = model.predict(x, t, condition)
        assert (after - before).abs().max() > 1e-3
        pipeline(fresh).load_lora_weights(tmp_path / "adapter")
        found = fresh.predict(x, t, condition)
    torch.testing.assert_close(found, after, rtol=0, atol=1e-5)
    names = load_file(tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    parts = {name.partition(".")[0] for name in names}
    wanted = {None: {"unet", "text_encoder"}, "cross_attention": {"unet"}, "text_encoder_mlp": {"text_encoder"}}
    assert parts == wanted[kinds[0] if kinds else None]


def test_diffusers_reads_the_adapter_of_sdxls_layout(tmp_path: Path) -> None:
    """On both text encoders and the U-Net; the first encoder's last layer is not read."""
    model, fresh = xl_model().float(), xl_model().float()
    x, t = STREAM.normal(torch.arange(2), model.latent_shape, torch.float32), torch.tensor([30, 400])
    scope = Lora(rank=2, alpha=3, keep_adapter=True)
    with torch.no_grad():
        scope.attach(model, STREAM)
        moved(model, scope)
        scope.detach(model, tmp_path)
        condition = model.prompts(["a red three", "a blue one"])
        after = model.predict(x, t, condition)
        names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        text = dict(zip(names, (*fresh.text.encoders, *fresh.text.tokenizers), strict=True))  # type: ignore[union-attr]
        scheduler = DDPMScheduler(steps_offset=1, clip_sample=False)
        pipe = StableDiffusionXLPipeline(
            vae=None, unet=fresh.denoiser, scheduler=scheduler, add_watermarker=False, **text
        )
        assert (fresh.predict(x, t, condition) - after).abs().max() > 1e-3
        pipe.load_lora_weights(tmp_path / "adapter")
        torch.testing.assert_close(fresh.predict(x, t, condition), after, rtol=0, atol=1e-5)


@pytest.mark.parametrize("told", ["class", "dit"])
def test_peft_reads_the_adapter_of_a_model_that_is_told_classes(told: Conditioning, tmp_path: Path) -> None:
    model, fresh = small_model(told), small_model(told)
    x, t = STREAM.normal(torch.arange(2), model.latent_shape, torch.float64), torch.tensor([30, 400])
    condition = model.prompts(["3", "8"])
    scope = Lora(rank=2, keep_adapter=True)
    scope.attach(model, STREAM)
    moved(model, scope)
    scope.detach(model, tmp_path)
    fresh.denoiser = PeftModel.from_pretrained(fresh.denoiser, str(tmp_path / "adapter")).double().merge_and_unload()
    with torch.no_grad():
        after = model.predict(x, t, condition)
        torch.testing.assert_close(fresh.predict(x, t, condition), after, rtol=0, atol=1e-6)
        assert (after - small_model(told).predict(x, t, condition)).abs().max() > 1e-2


def test_the_same_seed_draws_the_same_adapter_whatever_was_drawn_before() -> None:
    first, second, other = tiny(), tiny(), tiny()
    Lora(rank=2).attach(first, STREAM)
    torch.rand(3)
    Lora(rank=2).attach(second, STREAM)
    Lora(rank=2).attach(other, Randomness(1, "test"))
    weights = [dict(model.named_parameters()) for model in (first, second, other)]
    name = next(name for name in weights[0] if "lora_A" in name)
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], weights[2][name])


def test_matching_no_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"matches no linear or convolution layer.*q_proj"):
        Lora(include=["no_such_layer"]).attach(tiny(), STREAM)


def test_a_reference_without_an_adapter_is_a_frozen_copy() -> None:
    target = tiny()
    assert ReferenceModel(lambda: target)() is target and not any(p.requires_grad for p in target.parameters())
