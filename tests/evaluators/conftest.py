"""Digits, split as category recipes split them."""

import pytest
import torch

from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset, Selection, Split
from unlearn.data.digits import Digits
from unlearn.data.splits import make_splits


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Return the real 8 x 8 digits."""
    return Digits().load()


@pytest.fixture(scope="session")
def threes(digits: Dataset) -> dict[str, Split]:
    """Return the splits that forget the threes."""
    return make_splits(digits, Digits(forget=Selection(label=["3"])), Randomness(0))


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    """Evaluators run without gradients."""
    with torch.no_grad():
        yield
