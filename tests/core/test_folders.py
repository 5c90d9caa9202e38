"""What is refused in a folder of a stranger before any of it is read."""

import json
from pathlib import Path

import pytest

from unlearn.core.errors import RecipeError
from unlearn.core.folders import check_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a harmless configuration, beside a secret, which also is in the working directory."""
    made = tmp_path / "model"
    made.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (made / "config.json").write_text(
        json.dumps({"_name_or_path": str(made), "dtype": "float32", "about": "secret.json"})
    )
    return made


def test_a_plain_folder_passes(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"vocab_file": "vocab.txt", "special": "/gone/map.json"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    (folder / "one.safetensors").write_bytes(b"")
    check_folder(folder)


@pytest.mark.parametrize(
    "content",
    [
        lambda secret: {"vocab_file": str(secret)},
        lambda secret: {"chat_template": "../secret.json"},
        lambda secret: {"fast_tokenizer_files": ["tokenizer.json", "../secret.json"]},
        lambda secret: {"deep": [{"anything": "x/../../secret.json"}]},
        lambda secret: {"vocab_file": "secret.json"},
    ],
)
def test_a_file_outside_is_refused(folder, content):
    """By an absolute path, by one that climbs, or by a name that the working directory has."""
    (folder / "tokenizer_config.json").write_text(json.dumps(content(folder.parent / "secret.json")))
    with pytest.raises(RecipeError, match="names a file outside of the folder"):
        check_folder(folder)


def test_folders_inside_are_looked_at(folder):
    """From a folder inside, a path may climb as far as the given folder."""
    (folder / "tokenizer").mkdir()
    described = folder / "tokenizer" / "tokenizer_config.json"
    described.write_text(json.dumps({"vocab_file": "../config.json"}))
    check_folder(folder)
    described.write_text(json.dumps({"vocab_file": "../../secret.json"}))
    with pytest.raises(RecipeError, match="names a file outside of the folder"):
        check_folder(folder)


@pytest.mark.parametrize("shard", ["../secret.json", "/etc/hostname", "sub/one.safetensors", 3])
def test_a_shard_lies_beside_its_index(folder, shard):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(RecipeError, match="shards lie beside their index"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("config.json", b"{", "cannot be read"),
        ("config.json", b'{"a": "\xff"}', "cannot be read"),
        ("model.safetensors.index.json", b"[]", "holds a list"),
        ("model.safetensors.index.json", b"{}", "no weight_map"),
    ],
)
def test_broken_files_are_named(folder: Path, name, content, said):
    (folder / name).write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        check_folder(folder)
