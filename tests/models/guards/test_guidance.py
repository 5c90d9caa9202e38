"""Guards of diffusion models: their formulas in numpy, what they leave alone, and their files."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.toys.diffusion import Conditioning, moved, small_model, small_splits
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.models.guards.guidance import LEVELS, NegativeGuidance, SafeLatentDiffusion

IDS = torch.arange(3)
GUARDS = [NegativeGuidance(), SafeLatentDiffusion(level="max")]
NAMES = ["negative_guidance", "sld"]


def model_of(told: Conditioning = "text") -> Diffusion:
    """A model whose scores depend on what it is told, by far more than noise and less than all."""
    return moved(small_model(told), 0.03)


def guarded(guard: Any, told: Conditioning = "text") -> tuple[Diffusion, Diffusion]:
    model = model_of(told)
    return model, guard(model, small_splits(told))


def batch(told: Conditioning = "text") -> dict[str, Tensor]:
    split = small_splits(told)["retain"]
    return split.batch(split.ids[:3])


def inputs(model: Diffusion, told: Conditioning = "text") -> tuple[Tensor, Tensor, Condition]:
    x = model.noise(IDS, Randomness(0, "x"))
    return x, torch.tensor([10, 400, 900]), model.condition(batch(told))


@torch.no_grad()
def scores(model: Diffusion, x: Tensor, t: Tensor, *conditions: Condition) -> list[np.ndarray]:
    return [model.predict(x, t, condition).numpy() for condition in conditions]


def sld_in_numpy(
    empty: np.ndarray, said: np.ndarray, unsafe: np.ndarray, momentum: np.ndarray, g: float, number: int, **s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (eps, next momentum) as the paper writes them."""
    bounded = (np.maximum if s.get("below") else np.minimum)(1.0, np.abs(s["scale"] * (said - unsafe)))
    mu = np.where(said - unsafe < s["threshold"], bounded, 0.0)
    gamma = mu * (unsafe - empty) + s["momentum_scale"] * momentum
    following = s["momentum_beta"] * momentum + (1 - s["momentum_beta"]) * gamma
    return empty + g * (said - empty - (gamma if number >= s["warmup"] else 0.0)), following


SETTINGS = {"scale": 30.0, "threshold": 0.02, "momentum_scale": 0.5, "momentum_beta": 0.7, "warmup": 2}
OTHERS = {"scale": 3.0, "threshold": -0.02, "momentum_scale": 0.1, "momentum_beta": 0.2, "warmup": 4}


@pytest.mark.parametrize("told", ["text", "class", "dit"])
def test_safe_latent_diffusion_step_by_step_in_numpy(told: Conditioning) -> None:
    """Five steps on the same states, so that warm-up and momentum show; each setting matters (the controls)."""
    model, safe = guarded(SafeLatentDiffusion(**SETTINGS), told)
    x, t, condition = inputs(model, told)
    name = "a red three" if told == "text" else "3"
    empty, said, unsafe = scores(model, x, t, model.null(3), condition, model.prompts([name]).repeat(3))

    def steps(**settings: float) -> list[np.ndarray]:
        momentum, found = np.zeros_like(empty), []
        for number in range(5):
            eps, momentum = sld_in_numpy(empty, said, unsafe, momentum, 3.0, number, **settings)
            found.append(eps)
        return found

    with torch.no_grad():
        steer = safe.steering(3.0)
        found = [steer(number, x, t, condition).numpy() for number in range(5)]
    for mine, expected in zip(found, steps(**SETTINGS), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-12)
    for setting, other in {
        "scale": 3.0,
        "threshold": -0.02,
        "momentum_scale": 0.1,
        "momentum_beta": 0.2,
        "warmup": 4,
    }.items():
        wrong = steps(**SETTINGS | {setting: other})
        assert max(np.abs(a - b).max() for a, b in zip(found, wrong, strict=True)) > 1e-6, setting
    below = replace(safe.guard, bound="below").steering(model, 3.0)  # type: ignore[type-var, union-attr]
    with torch.no_grad():
        printed = [below(number, x, t, condition).numpy() for number in range(5)]
    for mine, expected in zip(printed, steps(**SETTINGS, below=1.0), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-12)
    assert np.abs(printed[4] - found[4]).max() > 1e-6
    plain = empty + 3.0 * (said - empty)
    np.testing.assert_allclose(found[1], plain, atol=1e-12)  # warm-up
    assert np.abs(found[2] - plain).max() > 1e-6


def test_the_warmup_counts_steps_not_timesteps() -> None:
    """The fourth of five steps is the first that differs; the timesteps (800, ..., 0) of most lie above 3."""
    model, safe = guarded(SafeLatentDiffusion(level="max", warmup=3))
    x, _, condition = inputs(model)
    with torch.no_grad():
        plain = [state for _, state in model.trajectory(x, condition, 3.0, 5)]
        steered = [state for _, state in safe.trajectory(x, condition, 3.0, 5)]
    same = [torch.allclose(a, b, atol=1e-9) for a, b in zip(plain, steered, strict=True)]
    assert same[:4] == [True] * 3 + [False]


def test_a_trajectory_that_starts_late_counts_from_the_first_step_of_the_whole() -> None:
    model, safe = guarded(SafeLatentDiffusion(level="max", warmup=3))
    x, _, condition = inputs(model)
    with torch.no_grad():
        (number, plain), *_ = model.trajectory(x, condition, 3.0, 5, first=2)
        states = list(safe.trajectory(x, condition, 3.0, 5, first=2))
    assert number == 2 and torch.allclose(states[0][1], plain, atol=1e-9) and len(states) == 3


def test_the_authors_levels() -> None:
    """As their paper lists them (Hyp-Weak ... Hyp-Max)."""
    assert SafeLatentDiffusion(level="weak").settings() == (200, 0, 0, 0, 15)
    assert SafeLatentDiffusion().settings() == (1000, 0.01, 0.3, 0.4, 10)
    assert SafeLatentDiffusion(level="strong").settings() == (2000, 0.025, 0.5, 0.7, 7)
    assert SafeLatentDiffusion(level="max").settings() == (5000, 1.0, 0.5, 0.7, 0)
    own = SafeLatentDiffusion(level="max", scale=0.0, threshold=2.0, momentum_scale=3.0, momentum_beta=0.5, warmup=6)
    assert own.settings() == (0.0, 2.0, 3.0, 0.5, 6) and set(LEVELS) == {"weak", "medium", "strong", "max"}


@pytest.mark.parametrize("told", ["text", "class", "dit"])
def test_negative_guidance_by_hand(told: Conditioning) -> None:
    """eps_f + g (eps_c - eps_f); with the empty condition in its place (the control) it is another."""
    model, guard = guarded(NegativeGuidance(), told)
    x, t, condition = inputs(model, told)
    name = "a red three" if told == "text" else "3"
    empty, said, unsafe = scores(model, x, t, model.null(3), condition, model.prompts([name]).repeat(3))
    with torch.no_grad():
        found = guard.guided(x, t, condition, 2.5).numpy()
    np.testing.assert_allclose(found, unsafe + 2.5 * (said - unsafe), atol=1e-12)
    assert np.abs(found - (empty + 2.5 * (said - empty))).max() > 1e-6


@pytest.mark.parametrize("guard", GUARDS, ids=NAMES)
def test_of_several_prompts_the_mean_of_the_scores_counts(guard: Any) -> None:
    model = model_of()
    x, t, condition = inputs(model)
    prompts = ["a red three", "a blue one"]

    def steered(*names: str) -> Tensor:
        with torch.no_grad():
            return guard_of(list(names)).guided(x, t, condition, 3.0)

    def guard_of(names: list[str]) -> Diffusion:
        return replace(guard, prompts=names)(model, small_splits())  # type: ignore[no-any-return]

    twice = steered("a red three", "a red three")
    assert torch.allclose(twice, steered("a red three"), atol=1e-12)
    both = steered(*prompts)
    assert not torch.allclose(both, twice, atol=1e-6)
    if isinstance(guard, NegativeGuidance):
        assert torch.allclose(both, (steered(prompts[0]) + steered(prompts[1])) / 2, atol=1e-12)


@pytest.mark.parametrize("guard", GUARDS, ids=NAMES)
@pytest.mark.parametrize("told", ["text", "class", "dit"])
def test_a_guard_is_a_model_and_leaves_its_weights(guard: Any, told: Conditioning) -> None:
    model, safe = guarded(guard, told)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    like, draw = batch(told), Randomness(0, "draw")
    plain, steered = model.sample(IDS, draw, like)["image"], safe.sample(IDS, draw, like)["image"]
    assert plain.shape == steered.shape and steered.dtype == torch.uint8
    x, t, condition = inputs(model, told)
    with torch.no_grad():
        (_, first), (_, other) = next(model.trajectory(x, condition)), next(safe.trajectory(x, condition))
        assert not torch.equal(first, other)
        assert torch.equal(safe.predict(x, t, condition), model.predict(x, t, condition))
        assert torch.equal(safe.training_loss(like, draw), model.training_loss(like, draw))
    assert safe.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in safe.state_dict().items())
    copy = deepcopy(safe)
    assert torch.equal(copy.sample(IDS, draw, like)["image"], steered)


@pytest.mark.parametrize("guard", GUARDS, ids=NAMES)
def test_a_guard_is_saved_beside_the_unchanged_model(guard: Any, tmp_path: Path) -> None:
    """The folder is the plain model's and one file more, and is read as the guarded model."""
    model, safe = guarded(guard)
    model.float()
    (tmp_path / "plain").mkdir()
    (tmp_path / "safe").mkdir()
    model.save_pretrained(tmp_path / "plain")
    safe.float().save_pretrained(tmp_path / "safe")
    files = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("plain", "safe")
    }
    assert set(files["safe"]) - set(files["plain"]) == {Path("guard.json")}
    assert all(files["safe"][path] == content for path, content in files["plain"].items())
    again = Diffusion.from_pretrained(tmp_path / "safe")
    assert again.guard == safe.guard is not None
    draw = Randomness(0, "draw")
    assert torch.equal(again.sample(IDS, draw, batch())["image"], safe.sample(IDS, draw, batch())["image"])
    assert Diffusion.from_pretrained(tmp_path / "plain").guard is None
    huge = {"name": "sld", "level": "huge", "prompts": ["a red one"]}
    text = {**huge, "level": "max", "threshold": "x"}
    empty = {"name": "sld", "prompts": []}
    for content, message in (
        (huge, r"guard\.json .*level is 'huge'"),
        (text, r"guard\.json .*threshold is 'x'"),
        (empty, r"guard\.json .*prompts is \[\]"),
        ({**empty, "prompts": [1]}, r"guard\.json .*prompts is \[1\]"),
        ({"name": "sld", "prompts": ["a red one"], "speed": 1}, r"guard\.json .*'speed'"),
        ({**empty, "prompts": "van gogh"}, r"guard\.json .*prompts is 'van gogh'"),
        ({**text, "threshold": float("nan")}, r"guard\.json .*threshold is nan"),
        ({"name": "none"}, r"guard\.json .*'none'"),
        ([], r"guard\.json"),
    ):
        (tmp_path / "safe" / "guard.json").write_text(json.dumps(content))
        with pytest.raises(RecipeError, match=message):
            Diffusion.from_pretrained(tmp_path / "safe")
    (tmp_path / "safe" / "guard.json").write_text("[" * 100_000)
    with pytest.raises(RecipeError, match="guard"):
        Diffusion.from_pretrained(tmp_path / "safe")


@pytest.mark.parametrize("guard", GUARDS, ids=NAMES)
def test_what_cannot_be_guarded_is_refused(guard: Any) -> None:
    with pytest.raises(RecipeError, match="steers the samples of a diffusion model"):
        guard(torch.nn.Linear(1, 1), small_splits())
    model = small_model()
    model.settings.one_step = 500
    with pytest.raises(RecipeError, match="one-step generator"):
        guard(model, small_splits())
    dataset = deepcopy(small_splits()["forget"].dataset)
    dataset.concepts = ()  # type: ignore[attr-defined]
    splits = {name: replace(split, dataset=dataset) for name, split in small_splits().items()}
    with pytest.raises(RecipeError, match=r"guard\.prompts="):
        guard(small_model(), splits)
    assert replace(guard, prompts=["a red one"])(small_model(), splits).guard.prompts == ["a red one"]
    with pytest.raises(RecipeError, match="no class 'three'"):
        replace(guard, prompts=["three"])(small_model("class"), small_splits("class"))


def test_negative_guidance_without_guidance_is_refused() -> None:
    model = small_model()
    model.settings.guidance = 1.0
    with pytest.raises(RecipeError, match=r"model\.guidance=2"):
        NegativeGuidance()(model, small_splits())


@pytest.mark.parametrize("setting", ["scale", "momentum_scale", "warmup", "momentum_beta"])
def test_values_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is -1"):
        SafeLatentDiffusion(**{setting: -1})
    with pytest.raises(ValueError, match="momentum_beta is 1"):
        SafeLatentDiffusion(momentum_beta=1.0)
