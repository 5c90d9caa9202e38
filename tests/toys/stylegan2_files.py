"""Writes files of the public layout: networks as persistent objects that carry their own source."""

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

SOURCE = "import pathlib\npathlib.Path({canary!r}).touch()\n"
"""What the public library would execute while it reads; here it leaves a trace."""


class EasyDict(dict):
    """A dict by another name."""


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    """What the files name; never called."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextmanager
def public_names() -> Iterator[None]:
    """Let pickle find the names that it writes."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    names = {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib")}
    names |= {"torch_utils.persistence": persistence, "dnnlib.util": util}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


class Frozen:
    """A module as the public library pickles it."""

    def __init__(self, module: nn.Module, canary: Path, **attributes: Any) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE.format(canary=str(canary)),
            "class_name": type(module).__name__,
            "state": {
                "training": False,
                "_parameters": OrderedDict(module._parameters),
                "_buffers": OrderedDict(module._buffers),
                "_non_persistent_buffers_set": set(),
                "_modules": OrderedDict((n, Frozen(m, canary, **attributes)) for n, m in module._modules.items()),
                "weight_gain": np.float64(0.5) * np.sqrt(2),
                "resolutions": [4, 8],
                **attributes,
            },
        }

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,)


def write(path: Path, networks: dict[str, nn.Module | None], protocol: int, canary: Path, **attributes: Any) -> None:
    """Write networks under their keys, with attributes in every module."""
    held: dict[str, Any] = {
        name: None if network is None else Frozen(network, canary, **attributes) for name, network in networks.items()
    }
    held["training_set_kwargs"] = EasyDict(path="images.zip", resolution=16, w_std=np.arange(6.0).reshape(2, 3))
    with public_names():
        path.write_bytes(pickle.dumps(held, protocol=protocol))
