"""Identities: who is to be forgotten, strangers, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.models.gan.test_gan import small
from unlearn.config.recipe import load
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.identities import FIRST_STRANGER, Identities, Identity, IdentityData
from unlearn.data.splits import make_splits
from unlearn.models.gan.config import StyleGAN2


def picture(path: Path, size: tuple[int, int] = (10, 6), grey: int = 255) -> str:
    """Black, with a square of one colour in the middle that fills the height."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    left = (size[0] - size[1]) // 2
    pixels[:, left : left + size[1]] = grey
    Image.fromarray(pixels).save(path)
    return str(path)


def test_seeds_and_strangers_fall_into_splits() -> None:
    """Strangers are the same whoever is forgotten, and skip a seed that an identity has."""
    source = Identities(identities=[Identity(seed=7), Identity(seed=FIRST_STRANGER + 1)], strangers=3, test_strangers=2)
    dataset = source.load()
    splits = make_splits(dataset, source, Randomness(0, "splits"))
    seeds = {name: split.batch(split.ids)["seed"].tolist() for name, split in splits.items()}
    first = FIRST_STRANGER
    assert seeds == {"forget": [7, first + 1], "retain": [first, first + 2, first + 3], "test": [first + 4, first + 5]}
    assert dataset.labels[:3] == ["seed 7", f"seed {first + 1}", ""] and dataset.kind(0) == "seed"
    other = Identities(identities=[Identity(seed=3)], strangers=3, test_strangers=2).load()
    assert other.batch(torch.arange(1, 4))["seed"].tolist() == [first, first + 1, first + 2]
    assert other.fingerprint != dataset.fingerprint
    assert (
        other.fingerprint == Identities(identities=[Identity(seed=3)], strangers=3, test_strangers=2).load().fingerprint
    )


def test_several_kinds_in_one_batch(tmp_path: Path) -> None:
    save_file({"w": torch.arange(20.0).view(4, 5)}, tmp_path / "ann.safetensors")
    image, other = picture(tmp_path / "bob.png"), picture(tmp_path / "bob again.png", grey=51)
    source = Identities(
        identities=[
            Identity(seed=1),
            Identity(image=image, others=[other]),
            Identity(latent=str(tmp_path / "ann.safetensors"), name="Ann"),
        ],
        strangers=1,
    )
    dataset = source.load()
    assert isinstance(dataset, IdentityData) and dataset.info == {}
    assert [dataset.kind(item) for item in range(4)] == ["seed", "image", "w", "image"]
    assert dataset.labels[:4] == ["seed 1", "bob", "Ann", "bob"]
    with pytest.raises(RecipeError, match=r"Type model\.pretrained=FOLDER"):
        dataset.batch(torch.tensor([1]))
    shaped = small("stylegan2").read(dataset)
    assert (
        shaped.info == {"shape": (1, 8, 8), "levels": 17, "latent": (4, 5)}
        and shaped.fingerprint == dataset.fingerprint
    )
    batch = shaped.batch(torch.arange(4))
    assert batch["seed"].tolist() == [1, -1, -1, -1]
    assert batch["image"].shape == (4, 1, 8, 8) and batch["image"][1].eq(16).all() and batch["image"][0].eq(0).all()
    assert batch["image"][3].eq(3).all()  # 51 of 255 is 3.2 of 16
    assert batch["w"][2].eq(torch.arange(20.0).view(4, 5)).all() and batch["w"][0].isnan().all()
    assert set(shaped.batch(torch.tensor([0]))) == {"id", "label", "seed"}
    splits = make_splits(shaped, source, Randomness(0))
    assert splits["holdout"].ids.tolist() == [3]
    assert 3 not in splits["forget"].ids and 3 not in splits["retain"].ids


def test_a_given_generator_says_how_large_images_are(tmp_path: Path) -> None:
    small("stylegan2").save_pretrained(tmp_path)
    dataset = Identities(identities=[Identity(image=picture(tmp_path / "a.png"))]).load()
    assert StyleGAN2(pretrained=str(tmp_path)).read(dataset).info["shape"] == (1, 8, 8)
    assert StyleGAN2().read(dataset).info == {}


def test_the_recipe_takes_them_as_records() -> None:
    recipe = load("flow/category_digits", ["data={name: identities, identities: [{seed: 3}, {seed: 4}], strangers: 2}"])
    assert isinstance(recipe.data, Identities) and [one.name for one in recipe.data.identities] == ["seed 3", "seed 4"]


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    for given in ({}, {"seed": 1, "image": "x.png"}, {"seed": -1}):
        with pytest.raises(ValueError, match=r"one of seed, image and latent|must be >= 0"):
            Identity(**given)
    with pytest.raises(RecipeError, match="its own name"):
        Identities(identities=[Identity(seed=1), Identity(seed=1)]).load()
    with pytest.raises(RecipeError, match=r"Type data\.identities="):
        Identities(identities=[]).load()
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(RecipeError, match="not an image"):
        Identities(identities=[Identity(image=str(tmp_path / "x.png"))]).load()
    for tensors in (
        {"a": torch.zeros(2), "b": torch.zeros(2)},
        {"w": torch.tensor([torch.nan])},
        {"w": torch.zeros(1, 1, 2)},
    ):
        save_file(tensors, tmp_path / "w.safetensors")
        with pytest.raises(RecipeError, match="must hold a tensor w"):
            Identities(identities=[Identity(latent=str(tmp_path / "w.safetensors"))]).load()
    with pytest.raises(ValueError, match="strangers is 0"):
        Identities(strangers=0)
    for number, shape in enumerate([(2,), (3,)]):
        save_file({"w": torch.zeros(shape)}, tmp_path / f"{number}.safetensors")
    two = Identities(
        identities=[Identity(latent=str(tmp_path / f"{number}.safetensors")) for number in range(2)]
    ).load()
    with pytest.raises(RecipeError, match="different shapes"):
        two.batch(torch.arange(2))


def seen(path: Path) -> np.ndarray:
    """Return the pixels that are kept of a picture, (H, W, 3)."""
    content: np.ndarray = Identities(identities=[Identity(image=str(path))], strangers=1).load().rows[0].content
    return content


def test_pictures_are_read_as_they_are_seen(tmp_path: Path) -> None:
    """A grey ramp of 16 bits keeps its greys, a camera's turn is taken back, and what is transparent is white."""
    levels = np.tile(np.arange(0, 65536, 257, dtype=np.uint16), (2, 1))
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert seen(tmp_path / "deep.png")[0, :, 0].tolist() == list(range(256))
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert seen(tmp_path / "turned.jpg").shape == (4, 2, 3)
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (seen(tmp_path / "clear.png") == 255).all()
    Image.new("F", (2, 2), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(RecipeError, match="what is white"):
        seen(tmp_path / "float.tif")


def test_a_picture_that_says_it_is_huge_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(RecipeError, match=r"bomb\.png: the image is too large"):
        seen(tmp_path / "bomb.png")


def test_one_person_under_two_names_is_refused(tmp_path: Path) -> None:
    """By seed, by the pixels of a picture, by latent, and as a further picture of somebody."""
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.bmp")
    other = picture(tmp_path / "c.png", grey=90)
    for name in "xy":
        save_file({"w": torch.ones(3)}, tmp_path / f"{name}.safetensors")
    twice = [
        [Identity(seed=7, name="a"), Identity(seed=7, name="b")],
        [Identity(image=first), Identity(image=second)],
        [Identity(latent=str(tmp_path / f"{name}.safetensors")) for name in "xy"],
        [Identity(image=other, others=[first]), Identity(image=second)],
        [Identity(image=first, others=[second])],
    ]
    for identities in twice:
        with pytest.raises(RecipeError, match=r"are the same, (the seed 7|one image|one latent)\. Drop one"):
            Identities(identities=identities).load()
    Identities(identities=[Identity(image=first), Identity(image=other)]).load()


def test_a_latent_that_does_not_fit_the_generator_is_refused_by_name(tmp_path: Path) -> None:
    """Before anything is built; one for all layers goes together with one a layer."""
    for name, shape in {"wide": (37,), "deep": (3, 5), "one": (5,), "each": (4, 5), "none": (0,)}.items():
        save_file({"w": torch.zeros(shape) + len(name)}, tmp_path / f"{name}.safetensors")
    people = {name: Identity(latent=str(tmp_path / f"{name}.safetensors")) for name in ("wide", "deep", "one", "each")}
    for name in ("wide", "deep"):
        with pytest.raises(RecipeError, match=rf"the latent of '{name}'.*\(4, 5\), or \(5,\)"):
            small("stylegan2").read(Identities(identities=[people[name]]).load())
    both = small("stylegan2").read(Identities(identities=[people["one"], people["each"]]).load())
    assert both.batch(torch.arange(2))["w"].shape == (2, 4, 5)
    with pytest.raises(RecipeError, match="must hold a tensor w"):
        Identities(identities=[Identity(latent=str(tmp_path / "none.safetensors"))]).load()


def test_a_new_generator_of_identities_asks_for_another_one() -> None:
    with pytest.raises(RecipeError, match=r"model\.pretrained=FOLDER.*model\.images_of"):
        StyleGAN2().build({}, Randomness(0))
