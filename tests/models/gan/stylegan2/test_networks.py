"""Generator and discriminator: public names, what each w reaches, noise, truncation, second derivatives, precisions."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.toys import FILES
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.stylegan2.generator import Generator, Shape
from unlearn.models.gan.wrapper import LatentGenerator

NAMES = FILES / "stylegan2_names.txt"
SMALL = Shape(size=16, channels=3, z_dim=6, w_dim=8, layers=2, channel_base=128, channel_max=16)


def published(network: str, size: int) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Return the channel base and the names and shapes of a network's state dict."""
    rows = [line.split() for line in NAMES.read_text().splitlines() if line.startswith(f"{network} {size} ")]
    shapes = {name: () if s == "scalar" else tuple(map(int, s.split("x"))) for _, _, _, name, s in rows}
    return int(rows[0][2]), shapes


def generator(seed: int = 0, shape: Shape = SMALL) -> Generator:
    """A generator whose noise and biases have an effect."""
    torch.manual_seed(seed)
    found = Generator(shape).double()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                parameter += 0.3 * torch.randn_like(parameter)
        found.mapping.w_avg.normal_()
    return found


def discriminator(seed: int = 0) -> Discriminator:
    torch.manual_seed(seed)
    return Discriminator(SMALL).double()


def latents(n: int = 2) -> Tensor:
    return torch.randn(n, SMALL.z_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [256, 512, 1024])
@pytest.mark.parametrize(("letter", "network"), [("G", Generator), ("D", Discriminator)])
def test_names_and_shapes_are_the_published_ones(letter: str, network: type[nn.Module], size: int) -> None:
    base, wanted = published(letter, size)
    with torch.device("meta"):
        found = network(Shape(size=size, channel_base=base))
    assert {name: tuple(value.shape) for name, value in found.state_dict().items()} == wanted
    with torch.device("meta"):  # the control
        other = network(Shape(size=size, channel_base=base // 2))
    assert {name: tuple(value.shape) for name, value in other.state_dict().items()} != wanted


@pytest.mark.parametrize(
    ("network", "size", "base", "parameters", "buffers"),
    [(Discriminator, 1024, 32768, 29_012_513, 544), (Discriminator, 64, 16384, 23_407_361, 288)],
)
def test_sizes_are_those_of_printed_summaries(
    network: type[nn.Module], size: int, base: int, parameters: int, buffers: int
) -> None:
    """Totals that users' training logs show."""
    with torch.device("meta"):
        found = network(Shape(size=size, channel_base=base))
    assert sum(p.numel() for p in found.parameters()) == parameters
    assert sum(b.numel() for b in found.buffers()) == buffers


def test_a_layer_has_the_size_of_printed_summaries() -> None:
    """Parameters and buffers of three rows of a 1024 pixel generator's summary in users' training logs."""
    with torch.device("meta"):
        found = Generator(Shape(size=1024))
    for name, parameters, buffers in (("b8.conv0", 2_622_465, 80), ("b256.conv0", 426_369, 65_552)):
        layer = found.synthesis.get_submodule(name)
        assert sum(p.numel() for p in layer.parameters()) == parameters
        assert sum(b.numel() for b in layer.buffers()) == buffers
    assert sum(p.numel() for p in found.synthesis.get_submodule("b512.torgb").parameters()) == 33_027
    assert found.shape.num_ws == 18


def test_shapes() -> None:
    model, z = generator(), latents()
    w = model.mapping(z)
    image, features = model.synthesis(w[:, None].expand(-1, model.num_ws, -1))
    assert w.shape == (2, 8) and image.shape == (2, 3, 16, 16) and features.shape == (2, 8, 16, 16)
    torch.testing.assert_close(model(z), image)
    assert discriminator()(image).shape == (2,)


@pytest.mark.parametrize(
    ("setting", "value"), [("size", 24), ("size", 4), ("layers", 0), ("mapping_lr", 0.0), ("clamp", 0.0)]
)
def test_shapes_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        Shape(**{"size": 16, setting: value})  # type: ignore[arg-type]


def test_the_mapping_by_hand() -> None:
    """Two layers: z / rms(z), then twice sqrt(2) lrelu(.01 / sqrt(D) W x + .01 b)."""
    model = generator().mapping
    z = latents()
    x = z / (z.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    for index in range(2):
        layer = model.get_submodule(f"fc{index}")
        x = x @ layer.weight.T * (0.01 / math.sqrt(x.shape[1])) + 0.01 * layer.bias
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
    torch.testing.assert_close(model(z), x)
    torch.testing.assert_close(model(5 * z), x)  # the size of z is lost


def test_every_w_reaches_its_layers_and_no_earlier_ones() -> None:
    """Layer k's w is read by convolution k; odd ones also make the share of the image of the level before."""
    model = generator()
    ws = model.mapping(latents())[:, None].expand(-1, model.num_ws, -1).clone().requires_grad_()
    readers: dict[str, Tensor] = {}
    for name, module in model.synthesis.named_modules():
        if name.endswith("affine"):
            module.register_forward_hook(lambda _, __, out, name=name: readers.__setitem__(name, out))
    model.synthesis(ws)
    reached = {}
    for name, out in readers.items():
        (gradient,) = torch.autograd.grad(out.sum(), ws, retain_graph=True)
        reached[name.removesuffix(".affine")] = gradient.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert reached == {
        "b4.conv1": [0],
        "b4.torgb": [1],
        "b8.conv0": [1],
        "b8.conv1": [2],
        "b8.torgb": [3],
        "b16.conv0": [3],
        "b16.conv1": [4],
        "b16.torgb": [5],
    }


def test_the_image_is_the_sum_of_the_levels_shares() -> None:
    """Shares of 4, 8 and 16 pixels, the smaller ones upsampled."""
    model = generator()
    shares: list[Tensor] = []
    for level in model.synthesis.levels():
        level.torgb.register_forward_hook(lambda _, __, out: shares.append(out))
    image = model(latents())
    from unlearn.models.gan.stylegan2.layers import upsampled

    kernel = next(model.synthesis.levels()).resample_filter
    torch.testing.assert_close(image, upsampled(upsampled(shares[0], kernel) + shares[1], kernel) + shares[2])


def test_noise_is_constant_or_given() -> None:
    model, z = generator(), latents()
    sides = model.noise_sides()
    assert sides == [4, 8, 8, 16, 16]
    zeros = [torch.zeros(2, 1, side, side, dtype=torch.float64) for side in sides]
    const, none = model(z), model(z, noise=zeros)
    torch.testing.assert_close(model(z), const)
    assert (const - none).abs().max() > 1e-2
    own = [layer.noise_const for level in model.synthesis.levels() for layer in level.convs()]
    torch.testing.assert_close(model(z, noise=[n.expand(2, 1, -1, -1) for n in own]), const)
    zeros[3][1] = 1.0
    changed = model(z, noise=zeros)
    assert torch.equal(changed[0], none[0]) and not torch.equal(changed[1], none[1])


def test_truncation_moves_w_to_its_mean() -> None:
    model, w = LatentGenerator(generator()), torch.ones(1, 8, dtype=torch.float64)
    mean = model.w_avg
    for psi, wanted in ((1.0, w), (0.0, mean), (0.5, (1 + mean) / 2)):
        model.truncation = psi
        torch.testing.assert_close(model.truncated(w), wanted.expand(1, 6, 8))
    model.truncation = 0.0
    images = model.synthesis(model.truncated(model.mapping(latents())))
    torch.testing.assert_close(images[0], images[1])


def test_r1_and_path_length_have_gradients() -> None:
    """Gradients of penalties on gradients, against central differences in one weight."""
    model, judge = generator(), discriminator()
    z, real = latents(4), torch.randn(4, 3, 16, 16, dtype=torch.float64)

    def r1() -> Tensor:
        x = real.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(judge(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    def path_length() -> Tensor:
        ws = model.mapping(z)[:, None].expand(-1, model.num_ws, -1).clone().requires_grad_()
        image, _ = model.synthesis(ws)
        (gradient,) = torch.autograd.grad((image * real).sum(), ws, create_graph=True)
        return gradient.square().sum(dim=2).mean(dim=1).sqrt().sum()

    for penalty, network, name in (
        (r1, judge, "b16.conv0.weight"),
        (r1, judge, "b4.fc.weight"),
        (path_length, model, "synthesis.b8.conv0.weight"),
        (path_length, model, "synthesis.b16.torgb.affine.weight"),
    ):
        weight = network.get_parameter(name)
        (gradient,) = torch.autograd.grad(penalty(), weight)
        place = gradient.abs().flatten().argmax()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight.view(-1)[place] += step
            values.append(penalty().item())
            with torch.no_grad():
                weight.view(-1)[place] -= step
        slope = (values[0] - values[1]) / 2e-5
        assert abs(slope - gradient.flatten()[place].item()) < 1e-4 * max(1.0, abs(slope)), name


def test_fused_is_unfused() -> None:
    """On a CPU several items are not fused, whose features have their channels last; one item is."""
    model, z = generator().float(), latents().float()
    plain = model(z)
    features = model.synthesis(model.mapping(z)[:, None].expand(-1, model.num_ws, -1))[1]
    assert features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    alone = model(z[:1])
    model.synthesis.fused = True
    fused = model(z)
    assert torch.equal(alone, model(z[:1]))
    assert 0 < (plain - fused).abs().max() < 1e-5 * max(1.0, plain.abs().max().item())


def test_channels_last_changes_nothing_but_the_order_in_memory() -> None:
    model, judge, z = generator(), discriminator(), latents()
    image = model(z)
    logit = judge(image)
    last, last_judge = (network.to(memory_format=torch.channels_last) for network in (model, judge))
    torch.testing.assert_close(last(z), image)
    torch.testing.assert_close(last_judge(image.contiguous(memory_format=torch.channels_last)), logit)


def test_autocast_in_bfloat16_stays_near_and_has_gradients() -> None:
    model, judge, z = generator().float(), discriminator().float(), latents(4).float()
    exact = model(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, features = model.synthesis(model.mapping(z)[:, None].expand(-1, model.num_ws, -1))
        logit = judge(image)
    assert features.dtype == torch.bfloat16 and image.dtype == torch.float32
    assert (image - exact).abs().max() < 0.05 * exact.abs().max()
    assert (logit - judge(exact)).abs().max() < 0.1 * judge(exact).abs().max().clamp(min=1)
    (logit.float().sum() + image.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in judge.parameters())


def test_the_clamp_bounds_what_layers_hand_on() -> None:
    model = generator(shape=Shape(**{**vars(SMALL), "clamp": 0.5}))
    seen = []
    for name, module in model.synthesis.named_modules():
        if name.endswith(("conv0", "conv1", "torgb")):
            module.register_forward_hook(lambda _, __, out: seen.append(out.abs().max().item()))
    model(latents())
    assert len(seen) == 8 and max(seen) == 0.5


def test_the_discriminator_by_hand() -> None:
    """The whole network again from the formulas: levels of 16 and 8 pixels, then the last."""
    from unlearn.models.gan.stylegan2.layers import binomial_filter

    judge = discriminator()
    with torch.no_grad():
        for name, parameter in judge.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    x = image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    conv, root = torch.nn.functional.conv2d, math.sqrt(0.5)

    def weight(place: str) -> Tensor:
        found = judge.get_parameter(f"{place}.weight")
        return found / math.sqrt(found[0].numel())

    def bias(place: str) -> Tensor:
        return judge.get_parameter(f"{place}.bias")

    def relu(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.2 * x) * math.sqrt(2)

    def smooth(x: Tensor, pad: int) -> Tensor:
        kernel = binomial_filter().double()[None, None].expand(x.shape[1], 1, 4, 4)
        return conv(x, kernel, padding=pad, groups=x.shape[1])

    x = relu(conv(x, weight("b16.fromrgb"), bias("b16.fromrgb")))
    for side in (16, 8):
        straight = conv(smooth(x, 1)[:, :, ::2, ::2], weight(f"b{side}.skip"))
        x = relu(conv(x, weight(f"b{side}.conv0"), bias(f"b{side}.conv0"), padding=1))
        x = relu(conv(smooth(x, 2), weight(f"b{side}.conv1"), bias(f"b{side}.conv1"), stride=2))
        x = root * (x + straight)
    spread = (x.var(dim=0, correction=0) + 1e-8).sqrt().mean().expand(4, 1, 4, 4)
    x = relu(conv(torch.cat([x, spread], dim=1), weight("b4.conv"), bias("b4.conv"), padding=1)).flatten(1)
    x = relu(x @ weight("b4.fc").T + bias("b4.fc"))
    torch.testing.assert_close(judge(image), (x @ weight("b4.out").T + bias("b4.out")).squeeze(1))
