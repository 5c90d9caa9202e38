"""Low-rank adapters on two families: nothing changes at first, only they move, and merging keeps the outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.language_small import tiny, tiny_splits
from tests.small import digits_splits, small_glow
from unlearn.errors import RecipeError
from unlearn.models.lora import Lora
from unlearn.randomness import Randomness
from unlearn.reference import Reference, WithoutAdapter

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
    reference = WithoutAdapter(model, lambda: scope.off(model))()
    torch.testing.assert_close(reference.log_prob(batch, STREAM), before, rtol=0, atol=1e-12)
    assert torch.equal(model.log_prob(batch, STREAM), after)  # it is on again
    scope.detach(model, tmp_path)
    torch.testing.assert_close(model.log_prob(batch, STREAM), after, rtol=0, atol=1e-9)
    assert [name for name, _ in model.named_parameters()] == names


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
    assert Reference(lambda: target)() is target and not any(p.requires_grad for p in target.parameters())
