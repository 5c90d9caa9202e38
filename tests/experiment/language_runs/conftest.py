"""Trained models that all runs of a tiny language model begin with."""

from pathlib import Path

import pytest

from tests.toys.language_files import SMALL
from unlearn.run import main


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of trained models, filled by one run."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(folder))
        patch.chdir(folder)
        assert main([SMALL, "optim.steps=1", "output=first"]) == 0
    return folder


@pytest.fixture
def here(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, from which ``main`` finds the trained models."""
    monkeypatch.setenv("UNLEARN_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path
