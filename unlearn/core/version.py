"""The version, which the distribution and reports state."""

__version__ = "0.1.0"
