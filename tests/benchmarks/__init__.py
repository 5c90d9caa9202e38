"""Benchmarks: the reference way and ours, side by side, as a ratio."""
