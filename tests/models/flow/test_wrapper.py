"""What holds for the flows of every kind, and for those that a user built."""

import copy
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nflows import distributions, flows, transforms

from tests.toys.flow_kinds import IMAGE, KINDS, items, own_flow, part, stir
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.capabilities import HasLikelihood, InitialisesFromData, Samples, Trains
from unlearn.models.flow.config import FlowConfig, GlowConfig
from unlearn.models.flow.wrapper import Flow

R = Randomness(3)


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


def test_training_mode_changes_nothing(flow: Flow, batch: Batch) -> None:
    expected = flow.train().log_prob(batch, R)
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
    assert Flow.read_by(tmp_path) == 'Flow.wrap(flow, shape=(1, 4, 4), levels=17).load_weights(Path("model"))'
    again = Flow.wrap(own_flow(), (1, 4, 4), levels=17).load_weights(tmp_path)
    assert torch.equal(again.log_prob(batch, R), flow.log_prob(batch, R))


def test_wrap_refuses_what_is_no_flow() -> None:
    with pytest.raises(RecipeError, match="given Linear"):
        Flow.wrap(torch.nn.Linear(2, 2), (2,))
    with pytest.raises(RecipeError, match="shape="):
        Flow.wrap(own_flow(), (1, 4, 4))
    base = distributions.DiagonalNormal([2])
    with pytest.raises(RecipeError, match=r"StandardNormal.*DiagonalNormal"):
        Flow.wrap(flows.Flow(transforms.ReversePermutation(2), base), (2,)).sample(torch.arange(2), R)
    naive = flows.Flow(transforms.NaiveLinear(2, orthogonal_initialization=False), distributions.StandardNormal([2]))
    with pytest.raises(RecipeError, match="NaiveLinear"):
        Flow.wrap(naive, (2,)).sample(torch.arange(2), R)
