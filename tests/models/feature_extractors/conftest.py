"""The fixtures of feature nets."""

from tests.evaluators.conftest import digits

__all__ = ["digits"]
