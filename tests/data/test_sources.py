"""The data sources: stable content, a fixed test share, labels that stay text, errors that name the file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlearn.core.errors import RecipeError
from unlearn.data.base import Dataset
from unlearn.data.digits import Digits
from unlearn.data.image_folder import ImageFolder
from unlearn.data.in_memory import systematic_test_share
from unlearn.data.mnist import Mnist


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in two subfolders whose names YAML would not leave alone, one image without a label."""
    for label, shade in (("no", 40), ("012", 200)):
        (tmp_path / label).mkdir()
        for index in range(5):
            pixels = np.full((12, 20, 3), shade + index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{index}.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "loose.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / ".hidden" / "x.png")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "count", "levels"), [(Digits(), 1797, 17), (Mnist(), 5000, 256), (Mnist(bits=5), 5000, 32)]
)
def test_packaged_digits(source: Digits | Mnist, count: int, levels: int) -> None:
    data = source.load()
    batch = data.batch(torch.arange(count))
    assert len(data) == count
    assert data.info["levels"] == levels
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (count, *data.info["shape"])
    assert batch["image"].amin() == 0
    assert batch["image"].amax() == levels - 1
    assert [data.names[index] for index in batch["label"].tolist()] == list(data.labels)
    assert data.names[:10] == [str(digit) for digit in range(10)]


def test_bits_keep_the_leading_bits() -> None:
    """floor(v / 8) for 5 of 8 bits; and the fingerprint tells the two apart."""
    full, coarse = Mnist().load(), Mnist(bits=5).load()
    ids = torch.arange(0, 5000, 500)
    assert torch.equal(full.batch(ids)["image"] // 8, coarse.batch(ids)["image"])
    assert full.fingerprint != coarse.fingerprint


def test_a_frame_stands_around_larger_images_of_mnist() -> None:
    plain, framed = Mnist().load(), Mnist(size=32).load()
    ids = torch.arange(0, 5000, 500)
    images = framed.batch(ids)["image"]
    assert framed.info == {"shape": (1, 32, 32), "levels": 256, "frame": 2} and "frame" not in plain.info
    assert torch.equal(images[..., 2:30, 2:30], plain.batch(ids)["image"])
    assert images.sum() == plain.batch(ids)["image"].sum()  # the frame is black
    assert framed.attributes == plain.attributes and framed.fingerprint != plain.fingerprint


def test_a_fifth_of_each_label_is_test(digits: Dataset) -> None:
    """floor(n / 5) of the n items of each label, the same whenever the data is read."""
    for label in (str(digit) for digit in range(10)):
        mine = torch.tensor([label == other for other in digits.labels])
        assert digits.is_test[mine].sum() == mine.sum() // 5
    assert torch.equal(digits.is_test, Digits().load().is_test)
    assert systematic_test_share(["a"] * 4 + ["b"] * 5).tolist() == [False] * 8 + [True]


def test_fingerprint_is_of_the_content(digits: Dataset) -> None:
    assert digits.fingerprint == Digits().load().fingerprint
    assert digits.fingerprint != Mnist().load().fingerprint


def test_attributes_of_digits(digits: Dataset) -> None:
    """Parity follows the label; ink splits each digit in halves, and does not follow the label."""
    even = digits.having(["even"])
    assert all(even[i].item() == (int(label) % 2 == 0) for i, label in enumerate(digits.labels))
    assert (digits.having(["bold"]) ^ digits.having(["light"])).all()
    ink = digits.batch(torch.arange(len(digits)))["image"].flatten(1).sum(dim=1, dtype=torch.int64)
    for digit in ("1", "8"):
        bold, light = digits.having([digit, "bold"]), digits.having([digit, "light"])
        assert ink[bold].min() > ink[light].max()
        assert abs(int(bold.sum()) - int(light.sum())) <= 20  # ties with the median are bold


def test_folder_labels_stay_text(folder: Path) -> None:
    data = ImageFolder(path=str(folder), size=6, channels=3).load()
    assert list(data.labels) == ["012"] * 5 + [""] + ["no"] * 5
    assert data.names == ["012", "no"]
    batch = data.batch(torch.tensor([5, 0, 10]))
    assert batch["label"].tolist() == [-1, 0, 1]
    assert batch["image"].shape == (3, 3, 6, 6)
    assert batch["image"].flatten(1).float().mean(1).tolist() == [255, 200, 44]
    assert data.is_test.nonzero()[:, 0].tolist() == [4, 10]


def test_folder_grey_and_bits(folder: Path) -> None:
    data = ImageFolder(path=str(folder), size=4, channels=1, bits=3).load()
    assert data.info == {"shape": (1, 4, 4), "levels": 8}
    assert data.batch(torch.tensor([0]))["image"].unique().tolist() == [200 >> 5]


def test_folder_crops_the_central_square(tmp_path: Path) -> None:
    """A wide image with black ends and a white square in the middle becomes white."""
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    data = ImageFolder(path=str(tmp_path), size=8, channels=1).load()
    assert data.batch(torch.tensor([0]))["image"].unique().tolist() == [255]


def test_transparency_turns_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    palette = Image.new("P", (8, 8), 0)
    palette.save(tmp_path / "palette.png", transparency=bytes([0] * 256))
    data = ImageFolder(path=str(tmp_path), size=8).load()
    assert data.batch(torch.arange(2))["image"].unique().tolist() == [255]


def test_folder_fingerprint(folder: Path) -> None:
    """The same content gives the same hash; a changed byte, a new name or another size a new one."""

    def fingerprint(**settings: int) -> str:
        return ImageFolder(path=str(folder), **settings).load().fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(size=16) != first
    (folder / "no" / "0.png").rename(folder / "no" / "00.png")
    renamed = fingerprint()
    assert renamed != first
    Image.new("L", (20, 12), 1).save(folder / "no" / "00.png")
    assert fingerprint() not in (first, renamed)


def test_attribute_tables(folder: Path) -> None:
    (folder / "table.csv").write_text("file,hat,yes\nno/0.png,1,-1\n012/1.png,true,Yes\n")
    (folder / "table.json").write_text(json.dumps({"no/0.png": ["hat"], "012/1.png": ["hat", "yes"]}))
    of_csv = ImageFolder(path=str(folder), attributes="table.csv").load()
    of_json = ImageFolder(path=str(folder), attributes="table.json").load()
    assert of_csv.attributes == of_json.attributes
    assert of_csv.having(["012", "yes"]).nonzero()[:, 0].tolist() == [1]
    assert of_csv.having(["hat"]).sum() == 2
    assert of_csv.names == ["012", "hat", "no", "yes"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file,hat\nno/9.png,1\n", "there is no image 'no/9.png'.*e.g. 'no/"),
        ("t.csv", "file,hat\nno/0.png,maybe\n", "'maybe' for 'hat'; type 1 or 0"),
        ("t.csv", "file,hat\nno/0.png\n", "has 1 values; the header has 2"),
        ("t.csv", "", "first line must name the columns"),
        ("t.json", "[1]", "must map file names to lists"),
        ("t.json", "{", "is not JSON"),
        ("t.json", "[" * 200_000, r"t\.json cannot be read \(RecursionError"),
        ("t.csv", "file,hat\n" + "x" * 200_000 + ",1\n", r"t\.csv cannot be read \(Error: field larger"),
        ("t.csv", "file,hat\nno/0.png\0,1\n", r"t\.csv:2 holds a null byte"),
        ("t.json", '{"no/0.png": "hat"}', "must map file names to lists"),
    ],
)
def test_wrong_tables(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(RecipeError, match=message):
        ImageFolder(path=str(folder), attributes=name).load()


def test_wrong_folders(folder: Path) -> None:
    with pytest.raises(RecipeError, match="no folder 'nowhere'"):
        ImageFolder(path="nowhere").load()
    with pytest.raises(RecipeError, match="cannot be read"):
        ImageFolder(path=str(folder), attributes="missing.csv").load()
    (folder / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"holds no images.*\.png"):
        ImageFolder(path=str(folder / "empty")).load()
    (folder / "no" / "fake.png").write_text("no image")
    with pytest.raises(RecipeError, match=r"fake\.png: not an image"):
        ImageFolder(path=str(folder)).load()


def test_damaged_image_is_named(tmp_path: Path) -> None:
    """The header is read when loading; damage further in shows when the pixels are read."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    data = ImageFolder(path=str(tmp_path)).load()
    with pytest.raises(RecipeError, match=r"cut\.png: the image is damaged"):
        data.batch(torch.tensor([0]))


@pytest.mark.parametrize("settings", [{"size": 0}, {"channels": 2}, {"bits": 9}])
def test_settings_out_of_range(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageFolder(path="x", **settings)
    for wrong in ({"bits": 0}, {"size": 24}, {"size": 31}):
        with pytest.raises(ValueError, match="must be"):
            Mnist(**wrong)
