"""What libraries raise while they read is one sentence; a defect of the package stays one."""

import json

import pytest
from safetensors import safe_open

from unlearn.core.boundary import reading
from unlearn.core.errors import Diverged, RecipeError


def test_what_a_library_raises_is_one_sentence(tmp_path):
    """Of whatever kind: a broken file, no file, text that is no JSON, a script that ends the program."""
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    readers = {
        "SafetensorError": lambda: safe_open(broken, "pt").__enter__(),
        "JSONDecodeError": lambda: json.loads("{"),
        "FileNotFoundError": lambda: (tmp_path / "none").read_text(),
        "SystemExit": lambda: exec("raise SystemExit"),
    }
    for kind, read in readers.items():
        said = rf"FOLDER cannot be read \({kind}.*\)\. Type another\."
        with pytest.raises(RecipeError, match=said) as raised, reading("FOLDER", "Type another."):
            read()
        assert "\n" not in str(raised.value)


def test_a_lone_surrogate_can_be_printed():
    """A message that quotes text which no encoding has is escaped."""
    with pytest.raises(RecipeError) as raised, reading("FILE"):
        json.loads('{"\ud800": \ud800}')
    str(raised.value).encode()


def test_errors_of_the_package_and_of_the_machine_pass(monkeypatch):
    """Ours have their own sentence and exit code; a full disk is nobody's file."""
    for error in (Diverged("it did"), PermissionError(13, "denied"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), reading("FOLDER"):
            raise error


def test_a_defect_at_a_line_of_the_package_stays_a_traceback(monkeypatch, tmp_path):
    """The same error is the file's where a library raises it, and a defect where the package does."""
    for package, expected in ((tmp_path, AttributeError), (tmp_path / "other", RecipeError)):
        monkeypatch.setattr("unlearn.core.boundary.PACKAGE", package)
        code = compile("None.missing", str(tmp_path / "module.py"), "exec")
        with pytest.raises(expected), reading("FOLDER"):
            exec(code)
