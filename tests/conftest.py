"""One CPU thread a process: workers side by side would slow each other down. No test asks a model hub."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

HEAVY = (
    "experiment/test_runner.py",
    "experiment/test_distillation.py",
    "experiment/test_assets.py",
    "recipes/test_large_recipes.py",
    "training/test_module.py",
    "test_types.py",
    "test_packaging.py",
)
"""Files of half a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the heavy files, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(HEAVY))
