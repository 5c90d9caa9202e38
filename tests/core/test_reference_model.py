"""The reference under an adapter: no path through it reaches the trained weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import small_model, small_splits
from tests.toys.flow import run
from tests.toys.language import tiny, tiny_splits
from unlearn.core.optim import Optim
from unlearn.core.reference_model import ReferenceModel
from unlearn.models.lora import Lora
from unlearn.objectives.common.training_loss import TrainingLoss
from unlearn.training.build import build_module

FAMILIES: dict[str, Any] = {
    "language": (lambda: tiny(dtype=torch.float64), tiny_splits),
    "diffusion": (lambda: small_model("text"), lambda: small_splits("text")),
}


def outputs(family: str, model: Any) -> list[Tensor]:
    """Reach into the submodules in every way that Python offers: a call, an attribute, an item, an iteration."""
    if family == "language":
        tokens = torch.arange(6)[None]
        states = model.model.model.embed_tokens(tokens)
        first = next(layer for layer in model.layers)
        names = dict(model.named_modules())
        query = next(name for name in names if name.endswith("q_proj"))
        return [
            model.model(input_ids=tokens).logits,
            model.layers[0].self_attn.q_proj(states),
            first.self_attn.q_proj(states),
            names[query](states),
            model.get_submodule(query)(states),
            next(iter(model.children()))(input_ids=tokens).logits,
            dict(model.layers[0]._modules.items())["self_attn"].q_proj(states),
            next(iter(model.layers[0]._modules.values())).q_proj(states),
            next(pair for pair in zip(model.layers, names, strict=False))[0].self_attn.q_proj(states),
        ]
    noise = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)
    condition = model.encode(model.null(2)).states
    return [model.denoiser(noise, torch.tensor([5, 9]), encoder_hidden_states=condition).sample]


@pytest.mark.parametrize("family", FAMILIES)
def test_submodules_of_the_reference_run_with_the_adapter_off(family: str, tmp_path: Path) -> None:
    model_of, splits_of = FAMILIES[family]
    model, target = model_of(), model_of()
    module = build_module(
        model,
        splits_of(),
        0,
        forget={"training_loss": TrainingLoss()},
        scope=Lora(rank=2),
        optim=Optim(steps=2, batch=4, lr=0.1),
        target=ReferenceModel(lambda: target),
    )
    run(module, tmp_path)
    with torch.no_grad():
        wanted = outputs(family, target)
        seen = outputs(family, module._context("forget/training_loss").reference())
        trained = outputs(family, module.model)
    for found, expected, other in zip(seen, wanted, trained, strict=True):
        torch.testing.assert_close(found, expected)
        assert float((other - expected).abs().max()) > 1e-4  # the control: the trained model differs


def test_the_reference_under_an_adapter_is_not_copied() -> None:
    module = build_module(tiny(), tiny_splits(), 0, retain={"loss": TrainingLoss()}, scope=Lora(rank=2), optim=Optim())
    with pytest.raises(TypeError, match="scope=all"):
        copy.deepcopy(module._context("retain/loss").reference())
