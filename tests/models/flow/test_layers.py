"""Layers of flows, and the traps of nflows 0.14 that they work around: where one fails, a workaround may go."""

import warnings

import pytest
import torch
from nflows import transforms
from nflows.nn.nets import ResidualNet
from torch import Tensor

from tests.toys.flow_kinds import KINDS, items, own_flow, stir
from unlearn.core.randomness import Randomness
from unlearn.models.flow.architectures import shrink_factors
from unlearn.models.flow.config import CouplingFlowConfig
from unlearn.models.flow.layers import ActNorm, BoundedCoupling, InvertibleConvolution, Squeeze

R = Randomness(3)


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


def test_constant_channel_stays_finite() -> None:
    """A constant value keeps its scale and is shifted to 0; nflows divides by its deviation (the control)."""
    flow = CouplingFlowConfig(depth=1, width=4).build({"shape": (2,), "levels": None}, Randomness(0))
    batch = {"id": torch.arange(4), "vector": torch.tensor([[0.0, 7.0], [1, 7], [2, 7], [3, 7]])}
    flow.initialise(batch, R)
    assert flow.log_prob(batch, R).isfinite().all()
    control = transforms.ActNorm(2)
    assert not control.train()(batch["vector"])[0].isfinite().all()


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


def test_nflows_forward_raises() -> None:
    with pytest.raises(RuntimeError, match="Forward method cannot be called"):
        own_flow()(torch.rand(2, 1, 4, 4))


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
