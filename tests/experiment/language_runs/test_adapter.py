"""Adapters and checkpointing in a language model's run: what is trained, what is not, and the same gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.flow import run
from tests.toys.language import tiny, tiny_splits
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.models.language.config import Language
from unlearn.models.lora import Lora
from unlearn.objectives.language.kl import KL
from unlearn.objectives.language.npo import NPO
from unlearn.training.build import build_module
from unlearn.training.losses import StepLosses
from unlearn.training.module import UnlearningModule

SCOPE = Lora(rank=2)


def language(checkpointing: bool) -> Language:
    plain = tiny(dtype=torch.float64)
    return Language(plain.model, plain.encoder, checkpointing)


def module(checkpointing: bool, **optim: Any) -> UnlearningModule:
    """NPO and KL on an adapter."""
    model = language(checkpointing)
    settings = Optim(**{"steps": 8, "batch": 4, "lr": 1e-2, **optim})
    terms: Any = {"forget": {"npo": NPO()}, "retain": {"kl": KL()}}
    return build_module(model, tiny_splits(), 0, **terms, scope=SCOPE, optim=settings)


def gradients(checkpointing: bool, folder: Path) -> tuple[dict[str, Tensor], int]:
    """Return the first step's gradient away from the start, where B is zero, and how often the layers ran."""
    own = module(checkpointing)
    own.cache_reference_in(folder)
    for group, name, term in own.primary.terms():
        term.prepare(own.model, own._context(f"{group}/{name}"))
    with torch.no_grad():
        for index, parameter in enumerate(own.primary.parameters.values()):
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(index), dtype=parameter.dtype
            )
    ran = []
    own.model.layers[0].self_attn.register_forward_hook(lambda *_: ran.append(1))
    batches = {name: [split.batch(split.ids)] for name, split in tiny_splits().items() if name != "holdout"}
    found = StepLosses(own.primary, own.model, batches, own._context).gradient({}, log=False)
    return dict(zip(own.primary.parameters, [g.clone() for g in found], strict=True)), len(ran)


def test_checkpointing_computes_again_and_gives_the_same_gradients(tmp_path: Path) -> None:
    plain, once = gradients(False, tmp_path / "plain")
    again, twice = gradients(True, tmp_path / "again")
    assert (once, twice) == (2, 4)  # two losses; each layer ran once more in the backward pass
    assert max(float((plain[name] - again[name]).abs().max()) for name in plain) < 1e-6
    assert all(bool(gradient.any()) for gradient in plain.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapter_moves_and_nothing_else(checkpointing: bool, tmp_path: Path) -> None:
    before, own = language(checkpointing), module(checkpointing)
    start = {name: parameter.detach().clone() for name, parameter in own.model.named_parameters()}
    run(own, tmp_path)
    for name, parameter in own.model.named_parameters():
        assert torch.equal(parameter, start[name]) == (name not in own.primary.parameters)
    batch = {key: value for key, value in tiny_splits()["forget"].batch(torch.arange(4)).items()}
    target = before.log_prob(batch, Randomness(0)).detach()
    with torch.no_grad():
        moved = own.model.log_prob(batch, Randomness(0))
    off = own.common.reference().log_prob(batch, Randomness(0))
    assert float((off - target).abs().max()) < 1e-6 < 1e-2 < float((moved - target).abs().max())
    assert not off.requires_grad


def test_a_head_that_does_not_move_is_not_kept_twice(tmp_path: Path) -> None:
    """The exact KL under an adapter reads the model's own head; and it is the KL to a frozen copy of the target."""
    own = module(False)
    run(own, tmp_path)
    assert {file.stem for file in (tmp_path / "reference").iterdir()} == {"forget.log_prob", "retain.answer_states"}
    batch = tiny_splits()["retain"].batch(torch.tensor([4, 5, 6]))
    with torch.no_grad():
        found = KL()(own.model, batch, own._context("retain/kl")).values
        answers, target = own.model.answers(batch), language(False).answers(batch).logits.log_softmax(dim=1)
        log_p = answers.logits.log_softmax(dim=1)
        wanted = answers.means((target.exp() * (target - log_p)).sum(dim=1))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert bool((found > 1e-6).all())
