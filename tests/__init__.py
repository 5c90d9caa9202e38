"""Tests, acceptance checks and benchmarks."""
