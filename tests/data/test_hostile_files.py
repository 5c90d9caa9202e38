"""Files of data that are damaged, of another kind, far too large or links out of the folder: one sentence each."""

import json
import random
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from unlearn.core.errors import RecipeError
from unlearn.data.identities import Identities, Identity
from unlearn.data.image_folder import ImageFolder
from unlearn.data.loading import load_data
from unlearn.data.text_files import TextFiles


def png(width: int = 8, height: int = 8) -> bytes:
    """Return an image of noise; one whose header says more pixels than it has is a bomb."""
    file = BytesIO()
    Image.frombytes("L", (8, 8), random.Random(0).randbytes(64)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = file.getvalue()
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


IMAGES = {
    "truncated": png()[:70],
    "empty": b"",
    "text": b"not an image",
    "bomb": png(60000, 60000),
    "wide": png(2**31 - 1, 1),
    "zero": png(0, 0),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_cannot_be_read(kind, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png())
    (tmp_path / "5.png").write_bytes(IMAGES[kind])
    with pytest.raises(RecipeError, match=r"5\.png") as raised:
        load_data(ImageFolder(path=str(tmp_path), size=8)).batch(torch.arange(6))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["image", "folder", "broken", "table", "climbs"])
def test_a_link_out_of_a_folder_of_images_is_refused(kind, tmp_path):
    """Of the image, of a whole label, to a file that is not there, of the table of attributes; by whatever way."""
    root, secret = tmp_path / "images", tmp_path / "secret"
    for folder in (root / "a", secret):
        folder.mkdir(parents=True)
        for number in range(6):
            (folder / f"{number}.png").write_bytes(png())
    (secret / "table.csv").write_text("file,x\na/1.png,1\n")
    ImageFolder(path=str(root), size=8).load()
    name, aim = {
        "image": ("a/link.png", secret / "1.png"),
        "folder": ("b", secret),
        "broken": ("a/link.jpg", tmp_path / "nothing.jpg"),
        "table": ("table.csv", secret / "table.csv"),
        "climbs": ("a/link.png", Path("../../secret/2.png")),
    }[kind]
    (root / name).symlink_to(aim)
    with pytest.raises(RecipeError, match=f"{name} is a link that leads out.*cp -rL") as raised:
        load_data(ImageFolder(path=str(root), size=8, attributes="table.csv" if kind == "table" else None))
    assert "\n" not in str(raised.value)


def test_a_link_within_a_folder_of_images_or_to_it_is_followed(tmp_path):
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    for number in range(6):
        (root / "a" / f"{number}.png").write_bytes(png())
    (root / "a" / "same.png").symlink_to("1.png")
    (root / "README.md").symlink_to(tmp_path / "notes.md")  # which nobody reads
    (tmp_path / "linked").symlink_to(root)
    (tmp_path / "real.csv").write_text("file,x\na/1.png,1\n")
    (tmp_path / "typed.csv").symlink_to("real.csv")  # lies in no given folder: the user typed it
    for table in (None, "../typed.csv"):
        assert len(ImageFolder(path=str(tmp_path / "linked"), size=8, attributes=table).load()) == 7


TEXTS = {
    "truncated": b'{"question": "a", "answer": "b"}\n{"question": "a", "ans',
    "not utf-8": b'{"question": "\xff", "answer": "b"}',
    "numbers": b'{"question": 1, "answer": 2}',
    "list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "deep line": b'{"a":' * 50_000,
    "number": b"12",
    "long number": b"[" + b"9" * 5000 + b"]",
    "nan": b"NaN",
    "null": b"null",
    "empty": b"",
    "nul": b"\x00\x00",
    "surrogate": b'{"question": "\\ud800", "answer": "b"}',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_file_that_cannot_be_used(kind, tmp_path):
    """Each file of a source is read by the same functions."""
    (tmp_path / "retain.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    (tmp_path / "forget.jsonl").write_bytes(TEXTS[kind])
    with pytest.raises(RecipeError) as raised:
        load_data(TextFiles(path=str(tmp_path)))
    assert "forget.jsonl" in str(raised.value) and "\n" not in str(raised.value)


TABLES = {
    "json list": ("t.json", b"[]"),
    "json deep": ("t.json", b"[" * 100_000),
    "json numbers": ("t.json", b'{"0.png": [1]}'),
    "csv nul": ("t.csv", b"file,a\n0.png,\x00\n"),
    "csv long": ("t.csv", b"file,a\n0.png," + b"1" * 200_000 + b"\n"),
    "csv short": ("t.csv", b"file,a\n0.png\n"),
    "csv empty": ("t.csv", b""),
    "csv quote": ("t.csv", b'file,a\n"0.png,1\n'),
    "bytes": ("t.csv", b"\xff\xfe"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_attributes_that_cannot_be_used(kind, tmp_path):
    name, content = TABLES[kind]
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=r"t\.(csv|json)"):
        load_data(ImageFolder(path=str(tmp_path), size=8, attributes=name))


LATENTS = {
    "truncated": save({"w": torch.zeros(1, 8)})[:40],
    "nan": save({"w": torch.full((1, 8), torch.nan)}),
    "infinite in single precision": save({"w": torch.full((1, 8), 1e300, dtype=torch.float64)}),
    "empty": save({}),
    "integers": save({"w": torch.zeros(1, 8, dtype=torch.int64)}),
    "shape": save({"w": torch.zeros(1, 2, 3, 4)}),
    "pickle": b"\x80\x04cos\nsystem\n.",
}


@pytest.mark.parametrize("kind", LATENTS)
def test_a_latent_that_cannot_be_used(kind, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(LATENTS[kind])
    with pytest.raises(RecipeError, match=r"identities"):
        load_data(Identities(identities=[Identity(latent=str(tmp_path / "w.safetensors"))]))


def test_sound_images_load(tmp_path: Path) -> None:
    """The control: what is sound loads."""
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png())
    assert len(load_data(ImageFolder(path=str(tmp_path), size=8))) == 6
