"""Flows: the same truths for every kind, the discrete likelihood in closed form, files, and the traps of nflows."""

import copy
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from nflows import distributions, flows, transforms
from nflows.nn.nets import ResidualNet
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood, InitialisesFromData, Samples, Trains
from unlearn.models.flow.architectures import shrink_factors
from unlearn.models.flow.config import (
    AutoregressiveFlowConfig,
    CouplingFlowConfig,
    FlowConfig,
    GlowConfig,
    SplineFlowConfig,
)
from unlearn.models.flow.layers import ActNorm, BoundedCoupling, InvertibleConvolution, Logit, Squeeze
from unlearn.models.flow.wrapper import Flow

R = Randomness(3)
IMAGE = {"shape": (1, 4, 4), "levels": 17}
VECTOR = {"shape": (3,), "levels": None}
KINDS = {
    "glow": (GlowConfig(scales=2, depth=2, width=5), IMAGE),
    "glow_additive": (GlowConfig(scales=1, depth=2, width=5, coupling="additive"), IMAGE),
    "glow_bounded": (GlowConfig(scales=2, depth=2, width=5, coupling="bounded"), IMAGE),
    "glow_odd": (GlowConfig(scales=2, depth=1, width=5), {"shape": (1, 6, 6), "levels": 256}),
    "coupling_flow": (CouplingFlowConfig(depth=3, width=6), VECTOR),
    "autoregressive_flow": (AutoregressiveFlowConfig(depth=2, width=6), VECTOR),
    "spline_flow": (SplineFlowConfig(depth=3, width=6, bins=4), VECTOR),
}


def stir(flow: Flow, amount: float = 0.2) -> Flow:
    """Move every weight, so that no layer is the identity it starts as."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return flow


def items(info: dict[str, Any], count: int, first: int = 0) -> Batch:
    """Return ``count`` random items with ids from ``first`` on."""
    ids = torch.arange(first, first + count)
    if info["levels"] is None:
        return {"id": ids, "vector": 2 * Randomness(1).normal(ids, info["shape"]) + 1}
    return {"id": ids, "image": Randomness(1).integers(ids, info["levels"], info["shape"]).to(torch.uint8)}


def part(batch: Batch, rows: slice) -> Batch:
    return {key: value[rows] for key, value in batch.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[FlowConfig, dict[str, Any]]:
    return KINDS[request.param]


@pytest.fixture
def flow(kind: tuple[FlowConfig, dict[str, Any]]) -> Flow:
    config, info = kind
    built = config.build(info, Randomness(0))
    built.initialise(items(info, 64), R)
    return stir(built)


@pytest.fixture
def batch(kind: tuple[FlowConfig, dict[str, Any]]) -> Batch:
    return items(kind[1], 6)


def test_capabilities_are_seen_on_the_class_and_on_the_object(flow: Flow) -> None:
    for protocol in (Trains, HasLikelihood, Samples, InitialisesFromData):
        assert isinstance(flow, protocol)
        assert all(hasattr(Flow, name) for name in dir(protocol) if not name.startswith("_"))
    assert Flow.family == "flow"
    assert {config.wrapper for config, _ in KINDS.values()} == {Flow}


def test_shapes_units_and_gradients(flow: Flow, batch: Batch) -> None:
    """bits/dim = -log p / (M ln 2); every weight gets a finite gradient."""
    log_prob = flow.log_prob(batch, R)
    size = math.prod(flow.shape)
    assert log_prob.shape == (6,)
    assert flow.dimensions(batch).tolist() == [size] * 6
    # training_loss takes its noise from a stream of its own, so only continuous data give the very same number
    if flow.levels is None:
        torch.testing.assert_close(flow.training_loss(batch, R), -log_prob / (size * math.log(2)))
    flow.training_loss(batch, R).sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_forward_and_training_mode_change_nothing(flow: Flow, batch: Batch) -> None:
    expected = flow.train().log_prob(batch, R)
    assert torch.equal(flow(batch, R), expected)
    assert torch.equal(flow.eval().log_prob(batch, R), expected)


def test_jacobian_equals_autograd(flow: Flow, batch: Batch) -> None:
    """log|det J| of the reported transform against the determinant of autograd's Jacobian, in float64."""
    flow.double()
    x = flow.dequantise(part(batch, slice(0, 1)), R)
    _, reported = flow.flow._transform(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.flow._transform(v[None])[0].flatten(), x[0])
    _, expected = torch.linalg.slogdet(jacobian.reshape(x[0].numel(), -1))
    torch.testing.assert_close(reported[0], expected, rtol=1e-9, atol=1e-9)


def test_inverse(flow: Flow, batch: Batch) -> None:
    flow.double()
    x = flow.dequantise(batch, R)
    z, forward = flow.flow._transform(x)
    _, backward = flow.flow._transform.inverse(z)
    torch.testing.assert_close(flow.decode(z), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(backward, -forward, rtol=1e-7, atol=1e-7)


def test_an_item_does_not_depend_on_its_neighbours(flow: Flow, batch: Batch) -> None:
    """Alone, in a batch or in another order: the same likelihood and the same sample."""
    together = flow.log_prob(batch, R)
    alone = torch.cat([flow.log_prob(part(batch, slice(i, i + 1)), R) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    ids = torch.tensor([5, 2**40, 7, 0])
    many, few = flow.latents(ids, R), flow.latents(ids[[1]], R)
    assert torch.equal(many[1:2], few)
    torch.testing.assert_close(flow.decode(many)[1:2], flow.decode(few), rtol=1e-4, atol=1e-4)
    assert not torch.equal(flow.latents(ids, R.child("other")), many)


def test_empty_batch(flow: Flow, batch: Batch) -> None:
    """One forget image on two ranks: the other's gradient is zero, not missing."""
    empty = flow.log_prob(part(batch, slice(0, 0)), R)
    assert empty.shape == (0,)
    empty.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in flow.parameters())
    assert len(flow.sample(torch.arange(0), R)["id"]) == 0


def test_global_generator_is_left_alone(kind: tuple[FlowConfig, dict[str, Any]]) -> None:
    before = torch.get_rng_state()
    config, info = kind
    built = config.build(info, Randomness(0))
    built.initialise(items(info, 8), R)
    built.training_loss(items(info, 8), R)
    built.sample(torch.arange(3), R)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_come_from_the_seed(kind: tuple[FlowConfig, dict[str, Any]]) -> None:
    config, info = kind
    one, same, other = (config.build(info, Randomness(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_deepcopy(flow: Flow, batch: Batch) -> None:
    twin = copy.deepcopy(flow)
    expected = flow.log_prob(batch, R)
    stir(flow)
    assert torch.equal(twin.log_prob(batch, R), expected)
    assert not torch.equal(flow.log_prob(batch, R), expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_save_and_load(flow: Flow, batch: Batch, precision: torch.dtype, tmp_path: Path) -> None:
    flow.to(precision).save_pretrained(tmp_path)
    again = Flow.from_pretrained(tmp_path)
    assert torch.equal(again.log_prob(batch, R), flow.log_prob(batch, R))
    assert (again.shape, again.levels, again.temperature) == (flow.shape, flow.levels, flow.temperature)
    again.initialise(batch, R)  # already initialised: nothing moves
    assert all(torch.equal(again.state_dict()[name], value) for name, value in flow.state_dict().items())


def test_half_precision_files(flow: Flow, batch: Batch, tmp_path: Path) -> None:
    """Stored as fp16, read as fp32: a relative error of 2^-11 a weight, and whole numbers untouched."""
    flow.save_pretrained(tmp_path, torch.float16)
    again = Flow.from_pretrained(tmp_path)
    for name, value in flow.state_dict().items():
        assert again.state_dict()[name].dtype == value.dtype
        torch.testing.assert_close(again.state_dict()[name], value, rtol=2**-11, atol=1e-7)
    torch.testing.assert_close(again.log_prob(batch, R), flow.log_prob(batch, R), rtol=0.01, atol=0.05)


def test_bf16_autocast_keeps_log_determinants_in_fp32(flow: Flow, batch: Batch) -> None:
    expected = flow.training_loss(batch, R)
    with torch.autocast("cpu", torch.bfloat16):
        found = flow.training_loss(batch, R)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
    assert not torch.equal(found, expected)  # the networks did run in bf16


def test_float64(flow: Flow, batch: Batch) -> None:
    expected = flow.log_prob(batch, R)
    found = flow.double().log_prob(batch, R)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4)


def test_compiled_equals_eager() -> None:
    """No graph breaks: with fullgraph, one would raise."""
    info = IMAGE
    flow = stir(GlowConfig(scales=1, depth=1, width=3).build(info, Randomness(0)))
    expected = flow.training_loss(items(info, 4), R)
    flow.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(flow.training_loss(items(info, 4), R), expected)


# The discrete likelihood


def test_discrete_likelihoods_of_all_images_sum_to_one() -> None:
    """All 2^4 images of 2 x 2 pixels and 2 levels.

    The boxes (x + u) / 2 tile [0, 1]^4, so the sum over x of P(x) = E_u p((x + u) / 2) / 2^4 is the mass of p on
    [0, 1]^4; what lacks to 1 is the share of samples outside. A call gives a draw of log p((x + u) / 2) - 4 log 2, so
    by Jensen the sum of exp(mean log_prob) is below. The control: without the 4 log 2, both would be 16 times as large.
    """
    info = {"shape": (1, 2, 2), "levels": 2}
    flow = stir(GlowConfig(scales=1, depth=2, width=4).build(info, Randomness(0)))
    draws = 2048
    images = torch.tensor([[(code >> bit) & 1 for bit in range(4)] for code in range(16)], dtype=torch.uint8)
    repeated = images.view(16, 1, 1, 2, 2).expand(16, draws, 1, 2, 2).reshape(-1, 1, 2, 2)
    with torch.no_grad():
        log_prob = flow.log_prob({"id": torch.arange(16 * draws), "image": repeated}, R).view(16, draws)
        samples = flow.decode(flow.latents(torch.arange(16 * draws), R)).flatten(1)
    exact = log_prob.exp().mean(1).sum().item()
    bound = log_prob.mean(1).exp().sum().item()
    outside = ((samples < 0) | (samples >= 1)).any(1).float().mean().item()
    assert exact + outside == pytest.approx(1, abs=0.01)
    assert 0.1 < bound < exact < 1


def test_uniform_density_has_log2_levels_bits() -> None:
    """p(y) = 1 on [0, 1]^M gives every image log2 L bits/dim, 4.087 for 17 levels, whatever the noise."""
    flow = Flow.wrap(flows.Flow(transforms.IdentityTransform(), Uniform()), (1, 4, 4), levels=17)
    bits = flow.training_loss(items(IMAGE, 3), R)
    torch.testing.assert_close(bits, torch.full((3,), math.log2(17)))


class Uniform(distributions.Distribution):  # type: ignore[misc]
    """The uniform density on [0, 1]^M."""

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        inside = ((inputs >= 0) & (inputs < 1)).flatten(1).all(dim=1)
        return torch.where(inside, 0.0, -math.inf)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (AutoregressiveFlowConfig(depth=1, width=4), 1),
        (AutoregressiveFlowConfig(depth=2, width=6), 2),
        (CouplingFlowConfig(depth=2, width=6), 2),
        (SplineFlowConfig(depth=2, width=6, bins=4), 2),
    ],
)
def test_density_integrates_to_one(config: FlowConfig, size: int) -> None:
    """The midpoint rule in t, x = 3 t / (1 - t^2), over the whole plane; half of it holds less (the control)."""
    info = {"shape": (size,), "levels": None}
    flow = stir(config.build(info, Randomness(0))).double()
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    axis, slope = 3 * t / (1 - t**2), 3 * (1 + t**2) / (1 - t**2) ** 2 / 200
    points = torch.cartesian_prod(*[axis] * size).view(-1, size)
    cells = torch.cartesian_prod(*[slope] * size).view(-1, size).prod(1)
    with torch.no_grad():
        mass = flow.log_prob({"id": torch.arange(len(points)), "vector": points}, R).exp() * cells
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    assert mass[: len(mass) // 2].sum().item() < 0.95


# Samples


def test_samples_are_images_of_the_data(caplog: pytest.LogCaptureFixture) -> None:
    config, info = KINDS["glow"]
    flow = stir(config.build(info, Randomness(0)), 0.5)
    with caplog.at_level(logging.DEBUG, "unlearn.models.flow.wrapper"):
        samples = flow.sample(torch.arange(50), R)
    assert samples["image"].shape == (50, 1, 4, 4)
    assert samples["image"].dtype == torch.uint8
    assert samples["image"].amax() <= 16
    assert torch.equal(samples["id"], torch.arange(50))
    assert "of 50 samples had values outside" in caplog.text
    assert flow.log_prob(samples, R).isfinite().all()


def test_temperature_scales_the_latents() -> None:
    """z = T e with e standard normal: deviation T, and no noise at all as T goes to 0."""
    config, info = KINDS["spline_flow"]
    flow = config.build(info, Randomness(0))
    hot = flow.latents(torch.arange(4000), R)
    flow.temperature = 0.5
    assert torch.equal(flow.latents(torch.arange(4000), R), 0.5 * hot)
    assert hot.std().item() == pytest.approx(1, abs=0.02)


def test_samples_follow_the_density() -> None:
    """The mean of -log p over the model's own samples is its entropy.

    An autoregressive flow of one value is linear, x = s z + m, and its entropy log s + log sqrt(2 pi e).
    """
    flow = stir(AutoregressiveFlowConfig(depth=1, width=4).build({"shape": (1,), "levels": None}, Randomness(0)))
    samples = flow.sample(torch.arange(20000), R)
    spread = samples["vector"].std().item()
    entropy = -flow.log_prob(samples, R).mean().item()
    assert entropy == pytest.approx(math.log(spread) + 0.5 * math.log(2 * math.pi * math.e), abs=0.02)


def test_logit_keeps_the_inverse_in_range() -> None:
    """Latents far out give samples in [-alpha / (1 - 2 alpha), 1 + ...]; the control without a logit explodes."""
    config, info = KINDS["glow"]
    flow = stir(config.build(info, Randomness(0)), 0.5)
    far = 100 * flow.latents(torch.arange(20), R)
    with_logit = flow.decode(far)
    assert with_logit.isfinite().all()
    assert -0.0556 < with_logit.min() <= with_logit.max() < 1.0556
    without, _ = flow.flow._transform._transforms[1].inverse(far)
    assert without.abs().max() > 20


def test_bounded_couplings_stretch_by_a_bounded_factor() -> None:
    """|log det| of one coupling of 3 values is at most 3; nflows' own shrinks by 1e-3 a value (the control)."""

    def net(taken: int, given: int) -> torch.nn.Module:
        return ResidualNet(taken, given, hidden_features=4)

    mask, x = torch.tensor([1, 0, 1, 0, 1, 0]), 1e3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    ours, theirs = BoundedCoupling(mask, net), transforms.AffineCouplingTransform(mask, net)
    y, log_det = ours(x)
    assert 2.9 < log_det.abs().max() <= 3.0
    torch.testing.assert_close(ours.inverse(y)[0], x, rtol=1e-4, atol=1e-2)
    assert theirs(x)[1].min() < -10


# Data-dependent initialisation


def test_initialise_normalises_each_layer() -> None:
    """After it, the first ActNorm's output has mean 0 and deviation 1 in each channel, over batch and pixels."""
    config, info = KINDS["glow"]
    flow = config.build(info, Randomness(0))
    batch = items(info, 64)
    flow.initialise(batch, R)
    seen: list[Tensor] = []
    first = next(m for m in flow.modules() if isinstance(m, ActNorm))
    first.register_forward_hook(lambda _m, _i, output: seen.append(output[0].transpose(0, 1).flatten(1)))
    flow.log_prob(batch, R)
    torch.testing.assert_close(seen[0].mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[0].std(1, correction=0), torch.ones(4), rtol=0, atol=1e-5)


def test_initialise_happens_once_and_only_on_request() -> None:
    config, info = KINDS["glow"]
    flow = config.build(info, Randomness(0))
    before = copy.deepcopy(flow.state_dict())
    flow.train().log_prob(items(info, 8), R)
    assert all(torch.equal(flow.state_dict()[name], value) for name, value in before.items())
    buffers = {name: value.data_ptr() for name, value in flow.named_buffers()}
    flow.initialise(items(info, 8), R)
    assert flow.training
    assert {name: value.data_ptr() for name, value in flow.named_buffers()} == buffers  # in place: the device is kept
    after = copy.deepcopy(flow.state_dict())
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    flow.initialise(items(info, 8, first=100), R)
    assert all(torch.equal(flow.state_dict()[name], value) for name, value in after.items())


def test_constant_channel_stays_finite() -> None:
    """A constant value keeps its scale and is shifted to 0; nflows divides by its deviation (the control)."""
    flow = CouplingFlowConfig(depth=1, width=4).build({"shape": (2,), "levels": None}, Randomness(0))
    batch = {"id": torch.arange(4), "vector": torch.tensor([[0.0, 7.0], [1, 7], [2, 7], [3, 7]])}
    flow.initialise(batch, R)
    assert flow.log_prob(batch, R).isfinite().all()
    control = transforms.ActNorm(2)
    assert not control.train()(batch["vector"])[0].isfinite().all()


# Files that are wrong


def saved(folder: Path) -> Path:
    config, info = KINDS["coupling_flow"]
    config.build(info, Randomness(0)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json is missing"),
        ("config.json", "{", r"config\.json cannot be read"),
        ("config.json", "[]", r"config\.json holds list"),
        (
            "config.json",
            '{"kind": "glov", "config": {"temperature": 1}, "info": {"shape": [3]}}',
            "unknown kind 'glov'. Did you mean: glow",
        ),
        ("config.json", '{"kind": "glow", "info": {}}', "does not describe a flow"),
        (
            "config.json",
            '{"kind": "coupling_flow", "config": {"depth": 2}, "info": {}}',
            "temperature",
        ),
        ("model.safetensors", None, r"model\.safetensors is missing"),
        ("model.safetensors", "rubbish" * 9, r"model\.safetensors cannot be read"),
    ],
)
def test_wrong_files_are_named(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(RecipeError, match=message):
        Flow.from_pretrained(tmp_path)


def test_truncated_weights_and_other_weights(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RecipeError, match="cannot be read"):
        Flow.from_pretrained(tmp_path)
    saved(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"depth": 4}, r"\d+ weights missing \(e"),
        ({"width": 7}, r"fit the flow: \d+ weights of another"),
    ):
        other = {**about, "config": {**about["config"], **change}}
        (tmp_path / "config.json").write_text(json.dumps(other))
        with pytest.raises(RecipeError, match=message):
            Flow.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "info", "message"),
    [
        (GlowConfig(scales=4), {"shape": (1, 28, 28), "levels": 256}, r"shrunk 3 times. Type model.scales=3"),
        (GlowConfig(), {"shape": (3, 7, 8), "levels": 256}, "Choose sizes with a common factor"),
        (GlowConfig(), VECTOR, "takes images"),
        (SplineFlowConfig(), IMAGE, "takes vectors"),
        (CouplingFlowConfig(), {"shape": (1,), "levels": None}, "2 values or more"),
    ],
)
def test_data_that_does_not_fit(config: FlowConfig, info: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config.build(info, Randomness(0))


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (GlowConfig, {"depth": 0}),
        (GlowConfig, {"scales": 0}),
        (GlowConfig, {"alpha": 0.5}),
        (GlowConfig, {"coupling": "cubic"}),
        (GlowConfig, {"temperature": 0.0}),
        (SplineFlowConfig, {"bins": 1}),
        (SplineFlowConfig, {"tail": 0.0}),
    ],
)
def test_settings_out_of_range(config: type[FlowConfig], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        config(**settings)


def test_batches_that_do_not_fit() -> None:
    config, info = KINDS["glow"]
    flow = config.build(info, Randomness(0))
    with pytest.raises(RecipeError, match=r"'image' of shape \(1, 4, 4\); the data has \(1, 8, 8\)"):
        flow.log_prob(items({"shape": (1, 8, 8), "levels": 17}, 2), R)
    with pytest.raises(RecipeError, match=r"the data has \['id', 'vector'\]"):
        flow.log_prob(items(VECTOR, 2), R)


# Flows that a user built


def own_flow() -> Any:
    layers = [transforms.ActNorm(4), transforms.OneByOneConvolution(4)]
    transform = transforms.CompositeTransform([Logit(0.05), transforms.SqueezeTransform(), *layers])
    return flows.Flow(transform, distributions.StandardNormal([4, 2, 2]))


def test_a_users_flow(tmp_path: Path) -> None:
    """It trains, samples (nflows' deprecated inverse is silenced) and keeps its weights; its code is not stored."""
    flow = Flow.wrap(own_flow(), (1, 4, 4), levels=17)
    batch = items(IMAGE, 8)
    flow.initialise(batch, R)
    assert flow.training_loss(batch, R).isfinite().all()
    assert flow.sample(torch.arange(5), R)["image"].shape == (5, 1, 4, 4)
    flow.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"wrap\(flow, shape=\(1, 4, 4\), levels=17\)\.load_weights"):
        Flow.from_pretrained(tmp_path)
    again = Flow.wrap(own_flow(), (1, 4, 4), levels=17).load_weights(tmp_path)
    assert torch.equal(again.log_prob(batch, R), flow.log_prob(batch, R))


def test_wrap_refuses_what_is_no_flow() -> None:
    with pytest.raises(RecipeError, match="given Linear"):
        Flow.wrap(torch.nn.Linear(2, 2), (2,))
    with pytest.raises(RecipeError, match="need shape"):
        Flow.wrap(own_flow(), (1, 4, 4))
    base = distributions.DiagonalNormal([2])
    with pytest.raises(RecipeError, match="StandardNormal base; this flow's is DiagonalNormal"):
        Flow.wrap(flows.Flow(transforms.ReversePermutation(2), base), (2,)).sample(torch.arange(2), R)
    naive = flows.Flow(transforms.NaiveLinear(2, orthogonal_initialization=False), distributions.StandardNormal([2]))
    with pytest.raises(RecipeError, match="NaiveLinear has no inverse"):
        Flow.wrap(naive, (2,)).sample(torch.arange(2), R)


# The traps of nflows 0.14 that this backend works around: where one of these fails, a workaround may go


def test_nflows_forward_raises() -> None:
    with pytest.raises(RuntimeError, match="Forward method cannot be called"):
        own_flow()(torch.rand(2, 1, 4, 4))


def test_nflows_convolution_inverts_with_a_deprecated_call_and_ours_without() -> None:
    """Both are the same map, forward and back."""
    torch.manual_seed(0)
    ours = InvertibleConvolution(4)
    theirs = transforms.OneByOneConvolution(4)
    theirs.load_state_dict(ours.state_dict())
    shift = torch.randn(4)
    for layer in (ours, theirs):
        with torch.no_grad():
            layer.bias += shift
            layer.lower_entries += 0.3
            layer.upper_entries -= 0.2
    x = torch.randn(3, 4, 2, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    y, log_det = ours(x)
    back, minus = ours.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(minus, -log_det)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(theirs.inverse(y)[0], x, rtol=1e-5, atol=1e-5)
    assert all("triangular_solve" in str(warning.message) for warning in caught)


def test_nflows_naive_linear_has_no_inverse() -> None:
    layer = transforms.NaiveLinear(3, orthogonal_initialization=False)
    with pytest.raises(RuntimeError, match="removed"):
        layer.inverse(torch.zeros(2, 3))


def test_nflows_act_norm_sets_itself_and_survives_a_reload() -> None:
    layer = transforms.ActNorm(2)
    x = torch.tensor([[1.0, 5.0], [3.0, 9.0]])
    layer.train()(x)
    again = transforms.ActNorm(2)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.train()(x + 100)[0], layer.eval()(x + 100)[0])


def test_scales_shrink_by_the_smallest_common_factor() -> None:
    assert [shrink_factors(side, side) for side in (8, 28, 9, 1)] == [[2, 2, 2], [2, 2, 7], [3, 3], []]
    assert shrink_factors(32, 24) == [2, 2, 2]


def test_squeeze_is_nflows_squeeze_without_its_limit() -> None:
    """The same order of channels; blocks of 3 x 3 make 9 channels, which nflows cannot unfold (the control)."""
    x = torch.arange(2 * 36.0).view(1, 2, 6, 6)
    torch.testing.assert_close(Squeeze(2)(x), transforms.SqueezeTransform(2)(x))
    folded, _ = Squeeze(3)(x[:, :1])
    assert torch.equal(Squeeze(3).inverse(folded)[0], x[:, :1])
    with pytest.raises(ValueError, match="channel"):
        transforms.SqueezeTransform(3).inverse(folded)


def test_nflows_squeeze_needs_whole_blocks() -> None:
    squeeze = transforms.SqueezeTransform()
    x = torch.arange(32.0).view(1, 2, 4, 4)
    y, _ = squeeze(x)
    assert y.shape == (1, 8, 2, 2)
    assert torch.equal(squeeze.inverse(y)[0], x)
    with pytest.raises(ValueError, match="not compatible"):
        squeeze(torch.zeros(1, 1, 3, 4))
    with pytest.raises(ValueError, match="channel"):
        squeeze.inverse(torch.zeros(1, 3, 2, 2))
