"""The machine and the package versions of a run, for bug reports and for repeating it."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = (
    "unlearnkit",
    "torch",
    "lightning",
    "nflows",
    "transformers",
    "peft",
    "lm-eval",
    "omegaconf",
    "numpy",
    "scikit-learn",
    "safetensors",
)


def environment() -> dict[str, Any]:
    """Return package versions and the machine."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": found,
        "device": {
            "name": gpu or platform.processor() or "CPU",
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
