"""Edits: closed forms on weights and logits, their identities, and that the target stays as it is."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.language.test_architectures import READ, small
from tests.toys.flow import digits_splits, small_glow
from tests.toys.language import encoder, tiny, tiny_dataset, tiny_splits
from unlearn.config.compatibility import capabilities_of
from unlearn.config.registry import resolve
from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.models.guards.combined_logits import CombinedLogits
from unlearn.models.language.config import Language
from unlearn.models.language.verification import run
from unlearn.objectives.edits.base import Edit
from unlearn.objectives.edits.task_vector import TaskVector, negated
from unlearn.objectives.edits.whp import WhosHarryPotter

IDS = torch.tensor([0, 1, 2, 3])
TRAINED = ("task_vector", "whp")
"""Edits that train a copy further; those in closed form are tested in tests/objectives/edits."""


class Training:
    """What the engine gives to an edit: trains a copy, and notes what was asked for."""

    def __init__(self, steps: int = 10) -> None:
        self.steps, self.asked = steps, []

    def __call__(self, model: Any, split: str, optim: Optim) -> Any:
        self.asked.append((split, optim))
        copy, data = deepcopy(model).requires_grad_(True), tiny_splits()[split]
        optimizer = torch.optim.Adam(copy.parameters(), lr=optim.lr)
        for _ in range(self.steps):
            loss = copy.training_loss(data.batch(data.ids), Randomness(0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return copy


def nll(model: Any, ids: Tensor = IDS) -> float:
    with torch.no_grad():
        return model.training_loss(tiny_dataset().batch(ids), Randomness(0)).mean().item()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.answers(tiny_dataset().batch(IDS)).logits


def with_logits(seed: int, change: Callable[[Tensor], Tensor]) -> Language:
    """A tiny model whose output layer is changed."""
    model = tiny(seed)
    with torch.no_grad():
        model.model.lm_head.weight.copy_(change(model.model.lm_head.weight))
    return model


@pytest.mark.parametrize("name", TRAINED)
def test_every_edit_leaves_the_target_and_asks_for_the_forget_split(name: str) -> None:
    optim = Optim(lr=1e-3, steps=7)
    edit: Edit = resolve("edit", name)(alpha=2.0, optim=optim)
    target, training = tiny(), Training()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    result = edit(target, training, tiny_splits())
    assert training.asked == [("forget", optim)]
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    assert not {id(p) for p in result.parameters()} & {id(p) for p in target.parameters()}
    assert nll(result) > nll(target)  # it forgets


@pytest.mark.parametrize("name", TRAINED)
def test_a_factor_of_0_is_the_target_itself(name: str) -> None:
    target = tiny()
    same = resolve("edit", name)(alpha=0.0, optim=Optim(lr=1e-2))(target, Training(), tiny_splits())
    assert torch.equal(logits(same), logits(target))
    moved = resolve("edit", name)(alpha=1.0, optim=Optim(lr=1e-2))(target, Training(), tiny_splits())
    assert not torch.equal(logits(moved), logits(target))


@pytest.mark.parametrize("name", TRAINED)
def test_a_copy_that_learnt_nothing_changes_nothing(name: str) -> None:
    target = tiny()
    same = resolve("edit", name)(alpha=1.0)(target, Training(steps=0), tiny_splits())
    assert torch.equal(logits(same), logits(target))


@pytest.mark.parametrize("name", TRAINED)
def test_a_negative_factor_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="alpha"):
        resolve("edit", name)(alpha=-1.0)


def test_task_vector_by_hand() -> None:
    """theta_t = .5, theta_f = .75 and alpha = 2 give .5 - 2 * .25 = 0; alpha = -1 would be theta_f."""
    target, tuned = tiny(), tiny()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(0.5)
        for parameter in tuned.parameters():
            parameter.fill_(0.75)
    assert all(bool((parameter == 0).all()) for parameter in negated(target, tuned, 2.0).parameters())
    assert all(bool((parameter == 0.75).all()) for parameter in negated(target, tuned, -1.0).parameters())


def test_task_vector_is_computed_in_double_precision() -> None:
    """1 - 256 * 2^-23 = 1 - 2^-15 exactly; in half precision (the control) the small difference is lost."""
    target, tuned = tiny(), tiny()
    with torch.no_grad():
        for first, second in zip(target.parameters(), tuned.parameters(), strict=True):
            first.fill_(1.0)
            second.fill_(1.0 + 2**-23)
    moved = negated(target, tuned, 256.0)
    assert all(bool((parameter == 1 - 2**-15).all()) for parameter in moved.parameters())
    assert torch.tensor(1.0 + 2**-23).half() == 1


def test_task_vector_leaves_buffers_and_types_and_serves_other_families() -> None:
    target = small_glow(digits_splits())
    tuned = deepcopy(target)
    with torch.no_grad():
        for value in (*tuned.parameters(), *(b for b in tuned.buffers() if b.is_floating_point())):
            value += 0.25
    result = negated(target, tuned, 1.0)
    for name, buffer in result.named_buffers():
        assert torch.equal(buffer, dict(target.named_buffers())[name])
    for name, parameter in result.named_parameters():
        assert torch.allclose(parameter, dict(target.named_parameters())[name] - 0.25)
        assert parameter.dtype == dict(target.named_parameters())[name].dtype


def test_combined_logits_by_hand() -> None:
    """With v_r = 2 v: what is positive, and so raised, is lowered by alpha v; what is negative stays as it is."""
    target, doubled = tiny(), with_logits(0, lambda weight: 2 * weight)
    combined = Language(CombinedLogits.of(deepcopy(target.model), doubled.model, 0.5), target.encoder)
    v = logits(target)
    assert torch.equal(logits(combined), torch.where(v > 0, 0.5 * v, v))
    assert (v > 0).any() and (v < 0).any()


FORWARD = {"gpt2": False, "gemma2": False, "bloom": False, "mamba": True, "falcon_h1": True, "llama4_text": False}


@pytest.mark.parametrize(("kind", "by_forward"), FORWARD.items())
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_two_models_of_any_architecture_say_what_their_logits_say(kind: str, by_forward: bool, tmp_path: Path) -> None:
    """In log p, in what they say, and read back; where both together have no cache, without one."""
    base = small(kind, **READ[kind])
    reinforced = deepcopy(base)
    for parameter in reinforced.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    route = Language(base, encoder()).route
    combined = Language(CombinedLogits.of(deepcopy(base), reinforced, 1.5, route), encoder())
    prompts = tiny_dataset().form("prompt", torch.tensor([0, 1, 5]))
    for tokens, mask, said in zip(prompts["tokens"], prompts["mask"], combined.generate(prompts, 3), strict=True):
        text = tokens[mask][None]
        for token in said.tolist():
            first, second = (run(model, text).logits[0, -1] for model in (base, reinforced))
            best = int((first - 1.5 * torch.relu(second - first)).argmax())
            assert token == (-1 if best in combined.ends else best)
            if token == -1:
                break
            text = torch.cat([text, torch.tensor([[token]])], dim=1)
    assert combined.by_forward == by_forward
    combined.save_pretrained(tmp_path)
    again = Language.from_pretrained(tmp_path)
    batch = tiny_dataset().batch(IDS)
    assert torch.equal(again.log_prob(batch, Randomness(0)), combined.log_prob(batch, Randomness(0)))


def test_what_the_reinforced_model_raises_is_lowered_and_nothing_else() -> None:
    target, training = tiny(), Training()
    result = WhosHarryPotter(alpha=3.0, optim=Optim(lr=1e-2))(target, training, tiny_splits())
    v, r = logits(target), logits(Training()(target, "forget", Optim(lr=1e-2)))
    assert torch.equal(logits(result), v - 3.0 * torch.relu(r - v))
    assert torch.equal(logits(result)[r <= v], v[r <= v]) and (logits(result)[r > v] < v[r > v]).all()


def test_both_models_are_saved_in_the_type_of_the_target() -> None:
    target = tiny()
    target.saved = dict.fromkeys(target.model.state_dict(), torch.bfloat16)
    result = WhosHarryPotter()(target, Training(1), tiny_splits())
    assert result.saved == dict.fromkeys(result.model.state_dict(), torch.bfloat16)


def test_what_cannot_be_combined_is_refused_before_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CombinedLogits, "states", lambda *_, **__: None)
    training = Training()
    with pytest.raises(RecipeError, match="CombinedLogits cannot be run"):
        WhosHarryPotter()(tiny(), training, tiny_splits())
    assert not training.asked


def pair(alpha: float = 20.0) -> Language:
    return Language(CombinedLogits.of(tiny(0).model, tiny(1).model, alpha), tiny().encoder)


def test_the_combined_model_generates_by_its_own_logits() -> None:
    """With the caches of both models, as without; and not what the base alone would say."""
    combined, prompts = pair(), tiny_dataset().form("prompt", IDS)
    said = combined.generate(prompts, 6)
    for row in range(len(IDS)):
        tokens = prompts["tokens"][row][prompts["mask"][row]].tolist()
        for step in range(6):
            with torch.no_grad():
                best = int(combined.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
            if said[row, step] == -1:
                assert best in combined.ends
                break
            assert best == said[row, step]
            tokens.append(best)
    assert not torch.equal(said, tiny(0).generate(prompts, 6))


def test_both_parts_are_saved_and_read(tmp_path: Path) -> None:
    combined = pair()
    combined.save_pretrained(tmp_path)
    again = Language.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(combined))
    prompts = tiny_dataset().form("prompt", IDS)
    assert torch.equal(again.generate(prompts, 6), combined.generate(prompts, 6))
    assert sum(p.numel() for p in again.parameters()) == 2 * sum(p.numel() for p in tiny().parameters())
    combined.save_pretrained(tmp_path, torch.float16)
    assert torch.allclose(logits(Language.from_pretrained(tmp_path)), logits(combined), atol=1.0)


def test_the_combined_model_has_every_capability_of_a_language_model() -> None:
    """Likelihoods agree with its logits, and a loss reaches all weights of both models (relearning trains them)."""
    combined, batch = pair(0.5), tiny_dataset().batch(IDS)
    answers = combined.answers(batch)
    assert torch.allclose(combined.log_prob(batch, Randomness(0)), answers.sums(answers.log_probs()))
    assert combined.answer_states(batch).shape == (len(answers.targets), 32)
    whole = combined.model(input_ids=batch["tokens"]).logits
    assert torch.allclose(whole[:, :-1][batch["answer"][:, 1:]], answers.logits, atol=1e-5)
    assert torch.equal(combined.model(input_ids=batch["tokens"], logits_to_keep=2).logits, whole[:, -2:])
    combined.requires_grad_(True)
    combined.training_loss(batch, Randomness(0)).mean().backward()
    assert all(parameter.grad is not None for parameter in combined.parameters())
    assert torch.equal(logits(deepcopy(combined)), logits(combined))


def test_padding_does_not_change_combined_logits() -> None:
    combined, data = pair(), tiny_dataset()
    alone = torch.cat([combined.answers(data.batch(IDS[[row]])).logits for row in range(4)])
    assert torch.allclose(alone, logits(combined), atol=1e-4)


def test_only_language_models_have_logits_to_combine() -> None:
    with pytest.raises(RecipeError, match="edit=whp"):
        WhosHarryPotter()(small_glow(digits_splits()), Training(), tiny_splits())


def test_task_vector_is_an_edit_of_any_family() -> None:
    assert capabilities_of(TaskVector) == ("training_loss",)
    assert capabilities_of(WhosHarryPotter) == ("training_loss", "continues")
