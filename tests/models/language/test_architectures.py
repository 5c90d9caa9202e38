"""Over the causal architectures of transformers: log p is the model's own, padded or not, or the model is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.toys.language import encoder, tiny_dataset
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.language.config import Language, TextEncoder
from unlearn.models.language.verification import HeadForm, run

IDS = torch.tensor([0, 1, 5, 10])

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": 0, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip

PLAIN = [
    "bloom", "ctrl", "falcon", "gemma", "gemma3_text", "glm4", "gpt2", "gpt_neox", "gpt_oss", "granitemoe", "llama",
    "llama4_text", "mamba", "mistral", "mixtral", "mllama", "olmo2", "openai-gpt", "opt", "phi", "phi3", "qwen2",
    "qwen3", "rwkv", "smollm3", "stablelm", "starcoder2", "xglm",
]  # fmt: skip

DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48, "decoder_attention_heads": 4}
"""Sizes of models whose decoder is one of two parts."""

READ: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in PLAIN},
    "gemma2": {"final_logit_softcapping": 5.0},
    "nanochat": {"final_logit_softcapping": 7.5},
    "recurrent_gemma": {"logits_soft_cap": 9.0},
    "falcon_h1": {"lm_head_multiplier": 0.37, "mamba_chunk_size": 16, "mamba_d_state": 8},
    "hyperclovax": {"logits_scaling": 3.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.7},
    "mpt": {"logit_scale": 0.5},
    "modernbert-decoder": {},
    "bert": {"is_decoder": True},
    "bart": DECODER,
}
"""Model type -> settings, beside ``SMALL``, under which a head rebuilt by names would be wrong."""

FORMS = {
    "gemma2": HeadForm(cap=5.0),
    "nanochat": HeadForm(cap=7.5),
    "recurrent_gemma": HeadForm(cap=9.0),
    "falcon_h1": HeadForm(scale=0.37),
    "hyperclovax": HeadForm(scale=3.0),
    "granite": HeadForm(scale=1 / 3.0),
    "cohere": HeadForm(scale=0.7),
}
OWN_FORWARD = {"modernbert-decoder", "bert"}
"""Their heads have more layers than one."""

NOT_CAUSAL = ["bert", "roberta", "roformer", "electra", "xlm", "megatron-bert"]


def small(kind: str, **settings: Any) -> PreTrainedModel:
    """Return a small model of a type with random weights."""
    plain = AutoConfig.for_model(kind).get_text_config()
    known = {**plain.to_dict(), **type(plain).attribute_map}
    given = {name: value for name, value in SMALL.items() if name in known}
    inside = AutoConfig.for_model(kind)
    config = AutoConfig.for_model(kind, **given, **settings)
    if inside.get_text_config() is not inside:  # the text's part of a model of several kinds of input
        (part,) = (name for name, value in vars(inside).items() if value is inside.get_text_config())
        config = AutoConfig.for_model(kind, **{part: {**given, **settings}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


@torch.no_grad()
def own_log_probs(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return log p of the answers by the model's own forward, one item after the other, without padding."""
    found = []
    for tokens, mask, answer in zip(batch["tokens"], batch["mask"], batch["answer"], strict=True):
        logits = run(model, tokens[mask][None]).logits[0, :-1].float().log_softmax(-1)
        each = logits.gather(1, tokens[mask][1:, None]).squeeze(1)
        found.append(each[answer[mask][1:]].sum())
    return torch.stack(found)


@pytest.mark.parametrize("kind", sorted(READ))
def test_log_p_is_the_models_own(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about kernels that are not there
        model = Language(small(kind, **READ[kind]), encoder())
        batch = tiny_dataset().batch(IDS)
        assert len(set(batch["mask"].sum(1).tolist())) > 1  # some are padded
        wanted = own_log_probs(model.model, batch)
        with torch.no_grad():
            found = model.log_prob(batch, Randomness(0))
            logits = model.head()(model.answer_states(batch))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits.float(), model.answers(batch).logits)
    assert model.route.head == FORMS.get(kind, HeadForm())
    assert (model.route.stack == "") == (kind in OWN_FORWARD)
    assert len(model.layers) == 2


@pytest.mark.parametrize(
    ("kind", "settings", "places"),
    [
        ("gpt2", {"max_position_embeddings": 50}, 50),
        ("opt", {"max_position_embeddings": 50}, 50),
        ("roberta", {"max_position_embeddings": 52, "is_decoder": True, "pad_token_id": 1}, 50),
        ("mpt", {"max_seq_len": 50}, 50),
        ("whisper", {"max_target_positions": 50, **DECODER}, 50),
        ("bart", {"max_position_embeddings": 50, **DECODER}, 50),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_texts_and_answers_end_where_positions_do(
    kind: str, settings: dict[str, Any], places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in settings.keys() & SMALL.keys():
        monkeypatch.delitem(SMALL, name)
    model, tokenizer = small(kind, **settings), encoder().tokenizer
    with pytest.raises(RecipeError, match=f"has {places} positions.*model.max_length={places}"):
        Language(model, TextEncoder(tokenizer, max_length=places + 1))
    wrapped = Language(model, TextEncoder(tokenizer, "{question}" + " and on and on" * 9, max_length=places))
    data = tiny_dataset().encoded_by(wrapped.encoder)
    batch = data.batch(IDS)
    assert batch["tokens"].shape[1] == places
    assert wrapped.log_prob(batch, Randomness(0)).isfinite().all()
    prompts = tiny_dataset().form("prompt", IDS[:2])
    room = places - prompts["mask"].sum(1)
    said = wrapped.generate(prompts, 40)
    assert 0 < room.max() < 40 and all((row[left:] == -1).all() for row, left in zip(said, room.tolist(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "settings", "form"),
    [
        ("granite", {"logits_scaling": 1.05}, HeadForm(scale=1 / 1.05)),
        ("cohere", {"logit_scale": 0.96}, HeadForm(scale=0.96)),
        ("gemma2", {"final_logit_softcapping": 90.0}, HeadForm(cap=90.0)),
        ("llama", {}, HeadForm()),
        ("mamba", {}, HeadForm()),
    ],
)
def test_a_head_that_does_little_is_seen_in_half_precision(
    kind: str, settings: dict[str, Any], form: HeadForm, dtype: torch.dtype
) -> None:
    route = Language(small(kind, **settings).to(dtype), encoder()).route
    assert route.head == form and route.stack


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_log_p_of_an_item_does_not_depend_on_the_others(rope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both turn positions otherwise beyond 40 tokens, for every item of a batch in which one is longer."""
    longest = 40 if rope == "dynamic" else 160
    monkeypatch.setitem(SMALL, "max_position_embeddings", longest)
    turned: dict[str, Any] = {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0}
    if rope == "longrope":
        turned |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
        model = small("phi3", rope_parameters=turned, original_max_position_embeddings=40)
    else:
        model = small("llama", rope_parameters=turned)
    with pytest.raises(RecipeError, match=r"more than 40 tokens.*model\.max_length=40"):
        Language(model, encoder())
    assert Language(model, TextEncoder(encoder().tokenizer, max_length=40)).encoder.max_length == 40


BY_FORWARD = {"rwkv", "bart", "recurrent_gemma"}
"""They take no mask, count positions from the padding on, or have a cache without a length."""


@pytest.mark.parametrize("kind", ["llama", "gemma2", "falcon_h1", "mamba", "rwkv"])
@pytest.mark.filterwarnings("ignore")
def test_checkpointing_changes_nothing_that_is_said(kind: str) -> None:
    """transformers drops the cache of a layer that recomputes its activations; then a token sees nothing before it."""
    model, prompts = small(kind, **READ[kind]), tiny_dataset().form("prompt", torch.arange(10))
    wanted = Language(copy.deepcopy(model), encoder()).generate(prompts, 8)
    wrapped = Language(model, encoder(), checkpointing=True)
    assert torch.equal(wrapped.generate(prompts, 8), wanted)
    assert all(layer.training for layer in wrapped.layers), "training goes on with it"


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(READ))
def test_prompts_are_continued_as_the_model_predicts(kind: str) -> None:
    """Prompts of several lengths in one batch: token by token what the model's own forward finds most likely."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Language(small(kind, **READ[kind]), encoder())
        prompts = tiny_dataset().form("prompt", torch.tensor([0, 1, 5]))
        assert len(set(prompts["mask"].sum(1).tolist())) > 1
        found = model.generate(prompts, 4)
        for tokens, mask, said in zip(prompts["tokens"], prompts["mask"], found, strict=True):
            text = tokens[mask][None]
            for token in said.tolist():
                best = int(run(model.model, text).logits[0, -1].argmax())
                assert token == (-1 if best in model.ends else best)
                if token == -1:
                    break
                text = torch.cat([text, torch.tensor([[token]])], dim=1)
    assert model.by_forward == (kind in BY_FORWARD)


@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_what_is_not_causal_is_refused(kind: str) -> None:
    with pytest.raises(RecipeError, match="is not causal"):
        Language(small(kind), encoder())


@pytest.mark.parametrize("kind", ["emu3", "mllama"])
def test_what_could_not_be_read_again_is_refused_at_the_start(kind: str) -> None:
    with pytest.raises(RecipeError, match=r"in memory could not be read again.*no causal model of a \w+TextConfig"):
        Language.adopt((small(kind), encoder().tokenizer), {})


def test_what_cannot_be_run_on_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("llama")
    monkeypatch.setattr(type(model), "forward", lambda self, input_ids, pixel_values: None)
    with pytest.raises(RecipeError, match=r"cannot be run on text alone.*pixel_values"):
        Language(model, encoder())


@pytest.mark.parametrize("kind", sorted(READ))
def test_what_a_loss_reaches_can_be_trained(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Language(small(kind, **READ[kind]), encoder()).requires_grad_(True)
        model.training_loss(tiny_dataset().batch(IDS), Randomness(0)).mean().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached <= set(model.trainable())


def test_a_gradient_reaches_a_model_that_is_run_by_its_own_forward() -> None:
    model = Language(small("modernbert-decoder"), encoder()).requires_grad_(True)
    model.training_loss(tiny_dataset().batch(IDS), Randomness(0)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_that_carry_several_states_per_token_are_no_hidden_states() -> None:
    """Gemma 3n's layers hand on several predictions of each token's state."""
    sizes = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 0}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0]}
    model = Language(small("gemma3n_text", altup_num_inputs=2, **sizes, **kinds), encoder())
    batch = tiny_dataset().batch(IDS)
    with torch.no_grad():
        wanted = own_log_probs(model.model, batch)
        torch.testing.assert_close(model.log_prob(batch, Randomness(0)), wanted, atol=1e-5, rtol=1e-5)
        with pytest.raises(RecipeError, match="not one state per token"):
            model.hidden(batch, 1)


def test_layers_are_those_of_the_text_decoder() -> None:
    """Beside a vision tower of three layers, whose modules come first, layer 1 is the text's first."""
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
    }
    text = {name: value for name, value in SMALL.items() if name != "pad_token_id"}
    config = AutoConfig.for_model("gemma3", vision_config=vision, text_config=text, image_token_index=299)
    model = Language(AutoModelForCausalLM.from_config(config), encoder())
    assert len(model.layers) == 2 and {type(layer).__name__ for layer in model.layers} == {"Gemma3DecoderLayer"}
    batch = tiny_dataset().batch(IDS)
    states = model.model(input_ids=batch["tokens"], output_hidden_states=True).hidden_states
    assert torch.equal(model.hidden(batch, 1), states[1])
    with pytest.raises(RecipeError, match="the model has 2"):
        model.hidden(batch, 3)
    names = [name for name, _ in model.named_parameters()]
    assert (
        [name for name in names if name not in set(model.trainable())]
        == [name for name in names if "vision" in name or "projector" in name]
        != []
    )
