"""Torch's settings for the whole process, which a component may change for itself only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_settings() -> Iterator[None]:
    """Put back, when the body ends, what it set for everybody: types, device, threads and how sums are taken."""
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    gradients, warns = torch.is_grad_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.set_grad_enabled(gradients)
