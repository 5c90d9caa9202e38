"""KPOP: its terms by hand, which networks each loss updates, and where the key is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.toys.diffusion import Bench, first_step, gradients, moved, small_job, small_model, small_splits
from unlearn.config.schema import Trainer
from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.models.conditioning import Condition
from unlearn.models.guards.key import Key, Keyed
from unlearn.models.lora import Lora
from unlearn.models.scope import Pattern, Scope
from unlearn.objectives.diffusion.esd import ESD
from unlearn.objectives.diffusion.kpop import KPOP, Recover
from unlearn.objectives.diffusion.noisy_states import StateSource
from unlearn.training.fit import fit
from unlearn.training.module import UnlearningModule

TERM: dict[str, Any] = {"tokens": 3, "states": StateSource(source="trajectory", items=4, steps=4)}


def key_of(model: Any, seed: int = 0) -> Key:
    return Key.drawn(model.encode(model.null(1)).states, 3, Randomness(seed, "key"))


class KeyBench(Bench):
    """A bench whose model and key have come apart from their first values."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, KPOP(**TERM | settings))
        moved(self.model, 0.02)
        self.key = key_of(self.target)

    def context(self, step: int = 0, **changed: Any) -> Any:
        auxiliary = getattr(self, "key", None)
        return super().context(step, **{"auxiliary": auxiliary} | changed)


def by_hand(bench: KeyBench, eta: float) -> tuple[Tensor, Tensor]:
    """Return the hiding and the recovery term of the whole batch, from four scores of the target."""
    batch, context = bench.batch(), bench.context()
    x, t, condition = _states(bench, batch, context)
    with torch.no_grad():
        empty, full = bench.target.predict(x, t, bench.target.null(len(x))), bench.target.predict(x, t, condition)
    hidden = bench.model.predict(x, t, condition) - ((1 + eta) * empty - eta * full)
    plain = bench.model.encode(condition).states
    assert plain is not None
    longer = torch.cat([plain, bench.key.tokens.detach().expand(len(x), -1, -1)], dim=1)
    opened = bench.model.predict(x, t, Condition(states=longer)) - full
    return hidden.square().mean(dim=(1, 2, 3)), opened.square().mean(dim=(1, 2, 3))


def _states(bench: KeyBench, batch: Any, context: Any) -> tuple[Tensor, Tensor, Condition]:
    found = bench.objective.states(bench.model, batch, context)  # type: ignore[attr-defined]
    return found.x, found.t, found.condition


def test_both_terms_by_hand(tmp_path: Path) -> None:
    """Value and gradient; with the weights exchanged (the control) it is another loss."""
    bench = KeyBench(tmp_path, eta=1.5, hide=0.7, recover=0.2)
    hidden, opened = by_hand(bench, 1.5)
    found = bench.values()
    assert torch.allclose(found.values, 0.7 * hidden + 0.2 * opened, atol=1e-12)
    assert torch.allclose(found.diagnostics["hidden"], hidden) and torch.allclose(
        found.diagnostics["recovered"], opened
    )
    moving = list(bench.model.parameters())
    mine = torch.autograd.grad(found.values.sum(), moving, allow_unused=True)
    right = torch.autograd.grad((0.7 * hidden + 0.2 * opened).sum(), moving, allow_unused=True, retain_graph=True)
    wrong = torch.autograd.grad((0.2 * hidden + 0.7 * opened).sum(), moving, allow_unused=True)
    assert all(a is b or torch.allclose(a, b, atol=1e-12) for a, b in zip(mine, right, strict=True))
    assert any(a is not None and not torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, wrong, strict=True))


def test_the_hiding_term_is_esds(tmp_path: Path) -> None:
    bench = KeyBench(tmp_path / "kpop", recover=0.0, eta=2.0)
    esd = ESD(eta=2.0, states=TERM["states"])
    assert torch.equal(bench.values().values, esd(bench.model, bench.batch(), bench.context()).values)


def test_the_keys_own_loss_moves_the_key_alone(tmp_path: Path) -> None:
    bench = KeyBench(tmp_path)
    found = Recover(term=bench.objective)(bench.model, bench.batch(), bench.context())  # type: ignore[arg-type]
    assert torch.allclose(found.values, by_hand(bench, 1.0)[1], atol=1e-12)
    found.values.sum().backward()
    assert bench.key.tokens.grad is not None and bool(bench.key.tokens.grad.abs().sum(dim=1).all())
    assert all(parameter.grad is None for parameter in bench.model.parameters())
    bench.key.tokens.grad = None
    bench.values().values.sum().backward()
    assert bench.key.tokens.grad is None  # the model's own loss leaves the key alone


def test_alternating_takes_the_terms_in_turn(tmp_path: Path) -> None:
    bench = KeyBench(tmp_path, turns="alternating", hide=2.0, recover=3.0)
    even, odd = bench.values(step=0), bench.values(step=1)
    assert set(even.diagnostics) == {"hidden"} and set(odd.diagnostics) == {"recovered"}
    assert torch.allclose(even.values, 2.0 * even.diagnostics["hidden"])
    assert torch.allclose(odd.values, 3.0 * odd.diagnostics["recovered"])


def test_the_term_for_wrong_keys_hides_under_a_random_key(tmp_path: Path) -> None:
    bench = KeyBench(tmp_path, hide=0.0, recover=0.0, wrong=2.0)
    found = bench.values()
    x, t, condition = _states(bench, bench.batch(), bench.context())
    other = bench.key.wrong(bench.context().randomness.child("wrong"))
    with torch.no_grad():
        empty, full = bench.target.predict(x, t, bench.target.null(len(x))), bench.target.predict(x, t, condition)
        said = bench.model.predict(x, t, other(bench.model.encode(condition)))
    assert torch.allclose(found.values, 2.0 * (said - (2 * empty - full)).square().mean(dim=(1, 2, 3)), atol=1e-12)
    assert not torch.equal(found.values, bench.values(step=1).values)  # another key at every step


def job(folder: Path, scope: Scope | None = None, **settings: Any) -> UnlearningModule:
    return small_job({"forget": {"kpop": KPOP(**TERM | settings)}}, folder, "text", scope)


def test_each_network_moves_by_its_own_loss_alone(tmp_path: Path) -> None:
    module = job(tmp_path)
    module.on_fit_start()
    batches = first_step(module)
    own = gradients(module, 0, batches)
    assert set(own) == {"key.tokens"} and bool(own["key.tokens"].abs().sum(dim=1).all())
    assert all(parameter.grad is None for parameter in module.model.parameters())
    main = gradients(module, 1, batches)
    assert all(bool(g.isfinite().all()) for g in main.values()) and any(bool(g.any()) for g in main.values())


@pytest.mark.parametrize("scope", [Pattern(["attn2"]), Lora(rank=2, include=["attn2"])], ids=["pattern", "lora"])
def test_what_must_not_move_stays_bit_for_bit(scope: Scope, tmp_path: Path) -> None:
    """Two steps; the key moves, and under LoRA the target's weights all stay."""
    module = job(tmp_path, scope, key_lr=0.1)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    first = module.phases[0].parameters["key.tokens"].detach().clone()
    fit(module, Trainer(accelerator="cpu", precision="64-true", tensorboard=False), tmp_path, "test")
    moving = set(module.primary.parameters)
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in moving), name
    now = module.phases[0].parameters["key.tokens"].detach()
    assert float((now - first).abs().max()) == pytest.approx(0.2, rel=0.2)  # two steps of Adam at its own rate


def test_settings_of_the_key(tmp_path: Path) -> None:
    module = job(tmp_path, tokens=5, key_lr=0.25)
    phase = module.phases[0]
    assert phase.parameters["key.tokens"].shape == (5, 16) and phase.file == "key.safetensors"
    assert phase.optim.lr == 0.25 and module.primary.optim.lr == 1e-3
    assert job(tmp_path / "other").phases[0].optim.lr == 1e-3


@pytest.mark.parametrize(
    "setting",
    [{"eta": 3.0}, {"hide": 2.0}, {"recover": 2.0}, {"wrong": 1.0}, {"states": replace(TERM["states"], guidance=1.0)}],
    ids=str,
)
def test_every_setting_of_the_loss_has_an_effect(setting: dict[str, Any], tmp_path: Path) -> None:
    usual, other = KeyBench(tmp_path / "a").values().values, KeyBench(tmp_path / "b", **setting).values().values
    assert not torch.allclose(usual, other, atol=1e-9)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("tokens", 0), ("eta", -1), ("hide", -1), ("recover", -1), ("wrong", -1), ("key_lr", 0)],
)
def test_values_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        KPOP(**{setting: value})


def test_models_that_are_told_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Type a model that takes prompts"):
        small_job({"forget": {"kpop": KPOP()}}, tmp_path, "class")


# the key


def test_with_a_key_the_model_is_told_more(tmp_path: Path) -> None:
    """Without training the outputs differ with the key, between keys, and not without one; the weights are the same."""
    model = moved(small_model("text"), 0.03)
    split = small_splits("text")["forget"]
    condition = model.condition(split.batch(split.ids[:2]))
    x, t = model.noise(torch.arange(2), Randomness(0, "x")), torch.tensor([100, 700])
    opened, other = Keyed(model, key_of(model)), Keyed(model, key_of(model, 1))
    with torch.no_grad():
        plain, first, second = (m.predict(x, t, condition) for m in (model, opened, other))
        assert not torch.allclose(plain, first, atol=1e-6) and not torch.allclose(first, second, atol=1e-6)
        empty = model.predict(x, t, model.null(2))
        assert torch.allclose(opened.guided(x, t, condition, 2.5), empty + 2.5 * (first - empty), atol=1e-12)
        assert torch.equal(opened.guided(x, t, condition, 1.0), first)
        control = empty + 2.5 * (plain - empty)
        assert not torch.allclose(opened.guided(x, t, condition, 2.5), control, atol=1e-6)
        walked = next(opened.trajectory(x, condition, 2.5, 4))[1]
        assert not torch.equal(walked, next(model.trajectory(x, condition, 2.5, 4))[1])
    states = opened.encode(condition).states
    assert states is not None and states.shape == (2, 8 + 3, 16)
    assert torch.equal(states[:, 8:], opened.key.tokens.expand(2, -1, -1))
    with pytest.raises(RecipeError, match="without its key"):
        opened.save_pretrained(tmp_path)


def test_a_wrong_key_is_like_the_right_one_but_for_what_it_says() -> None:
    right = Key(3.0 + 2.0 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    wrong = right.wrong(Randomness(0))
    assert wrong.tokens.shape == right.tokens.shape and wrong.tokens.dtype == torch.float64
    assert float(wrong.tokens.detach().mean()) == pytest.approx(3.0, abs=0.2)
    assert float(wrong.tokens.detach().std()) == pytest.approx(2.0, abs=0.2)
    assert torch.equal(right.wrong(Randomness(0)).tokens, wrong.tokens)
    assert not torch.equal(right.wrong(Randomness(1)).tokens, wrong.tokens)
    correlation = torch.corrcoef(torch.stack([right.tokens.detach().flatten(), wrong.tokens.detach().flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.1


def test_a_key_is_read_from_its_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    key = key_of(small_model("text"))
    save_file({name: value.detach() for name, value in key.state_dict().items()}, tmp_path / "key.safetensors")
    assert torch.equal(Key.load(tmp_path / "key.safetensors").tokens, key.tokens)
    assert list(load_file(tmp_path / "key.safetensors")) == ["tokens"]
    with pytest.raises(RecipeError, match="holds no key"):
        Key.load(tmp_path / "none.safetensors")


def test_training_opens_what_the_key_opens(tmp_path: Path) -> None:
    """Forty steps bring down the key's loss more than the model's alone do, with a key that stays (the control)."""
    losses = {}
    for rate in (0.1, 1e-12):
        module = job(tmp_path / str(rate), Pattern(["attn2.to_k"]), key_lr=rate, hide=1.0, recover=1.0)
        module.phases[1].optim = Optim(steps=40, batch=4, lr=1e-3)
        module.phases[0].optim = Optim(steps=40, batch=4, lr=rate)
        moved(module.model, 0.05)  # away from the target, so that there is something to recover
        fit(
            module,
            Trainer(accelerator="cpu", precision="64-true", tensorboard=False, log_every=1),
            tmp_path / str(rate),
            "test",
        )
        rows = (tmp_path / str(rate) / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("key/loss/forget/kpop_recover")
        values = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
        losses[rate] = sum(values[-5:]) / sum(values[:5])
    assert losses[0.1] < 0.95 * losses[1e-12]
