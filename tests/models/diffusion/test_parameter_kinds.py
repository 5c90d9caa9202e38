"""Kinds of parameters, and the scopes and adapters that name them."""

from pathlib import Path

import pytest
import torch

from tests.toys.diffusion import Conditioning, small_model, some_items, some_states
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.diffusion.parameter_kinds import KINDS
from unlearn.models.lora import Lora
from unlearn.models.scope import ByKind

STREAM = Randomness(0, "test")


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
    assert ByKind(["cross_attention_kv"]).select(model) == kinds["cross_attention_kv"]
    both = ByKind(["text_encoder_mlp", "text_encoder_last_attention"]).select(model)
    assert set(both) == {*kinds["text_encoder_mlp"], *kinds["text_encoder_last_attention"]}
    mixed = ByKind(["cross_attention", "embedding"]).select(model)
    assert set(mixed) == {*kinds["cross_attention"], *kinds["text_embeddings"]}
    with pytest.raises(RecipeError, match=r"'cross_attention'.*self_attention"):
        ByKind(["cross_attention", "self_attention"]).select(small_model("class"))
    with pytest.raises(RecipeError, match="Did you mean: cross_attention"):
        ByKind(["cross_atention"]).select(model)


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
    x, t = some_states(model)
    condition = model.condition(some_items(told))
    with torch.no_grad():
        score = model.predict(x, t, condition)
        scope = Lora(rank=2, kinds=[kind])
        scope.attach(model, STREAM)
        chosen = scope.select(model)
        assert {name.partition(".lora_")[0] for name in chosen} == layers
        assert set(chosen) <= set(ByKind([kind]).select(model))  # the kinds are those of the adapted model as well
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
    with pytest.raises(RecipeError, match="'text_encoder'"):
        Lora(kinds=["text_encoder"]).attach(small_model("class"), STREAM)
