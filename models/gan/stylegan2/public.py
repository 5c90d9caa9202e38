"""StyleGAN2 networks from the public ``.pkl`` files: weights by name, and the shape that follows from them."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from unlearn.core.errors import RecipeError, shorten
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.stylegan2.generator import Generator, Shape
from unlearn.models.gan.stylegan2.pickles import Persistent, Strided, read_pickle

log = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)

GENERATORS = ("G_ema", "G")
"""Keys of the file that may hold a generator, the averaged one first."""

MOST_DEPTH = 8
MOST_NAME = 100
MOST_SIDE = 4096


@dataclass(frozen=True)
class StoredNetwork:
    """A network of the file.

    Args:
        weights: its parameters and buffers by name.
        attributes: numbers and texts of its modules, by the module's name and their own.
    """

    weights: dict[str, Strided]
    attributes: dict[str, Any]


def read_networks(path: Path) -> tuple[Generator, Discriminator | None]:
    """Return the averaged generator of a public file, and its discriminator where there is one that fits.

    Raises:
        RecipeError: the file is refused (stylegan2.pickles), or holds no StyleGAN2 without conditions.
    """
    path = Path(path)
    found = read_pickle(path)
    try:
        if not isinstance(found, dict):
            raise _Misfit(f"it holds a {type(found).__name__}; files of the TensorFlow version hold a tuple")
        name = next((key for key in GENERATORS if isinstance(found.get(key), Persistent)), None)
        if name is None:
            raise _Misfit(f"it has no network under {' or '.join(GENERATORS)}")
        size = path.stat().st_size
        stored = flattened(found[name], size)
        shape = shape_of(stored)
        generator = _loaded(Generator, shape, stored, name)
        discriminator = found.get("D")
        if not isinstance(discriminator, Persistent):
            return generator, None
        return generator, _discriminator(shape, flattened(discriminator, size))
    except _Misfit as error:
        raise RecipeError(f"{path} holds no StyleGAN2 that can be read: {error}.") from error


class _Misfit(Exception):
    """What was read is no StyleGAN2."""


def flattened(network: Persistent, most: int) -> StoredNetwork:
    """Collect the parameters, buffers and plain attributes of a network and the modules in it.

    Args:
        network: what was read.
        most: bytes of the file, and so of all tensors' storages.
    """
    stored, left = StoredNetwork({}, {}), most
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", network)]
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, Persistent) or id(module) in seen or prefix.count(".") > MOST_DEPTH:
            raise _Misfit("its modules are of an unknown kind, nested too deeply, or in one another")
        seen.add(id(module))
        for name, value in {**_mapping(module, "_parameters"), **_mapping(module, "_buffers")}.items():
            if isinstance(value, Strided):
                left -= len(value.storage.data)
                stored.weights[_within(prefix, name)] = value
            elif value is not None:
                raise _Misfit(f"{_within(prefix, name)} is no tensor")
        if left < 0:
            raise _Misfit("its tensors have more values than the file")
        for name, value in module.state.items():
            if isinstance(value, str | int | float):
                stored.attributes[_within(prefix, name)] = value
        waiting += [(f"{_within(prefix, name)}.", child) for name, child in _mapping(module, "_modules").items()]
    return stored


def _within(prefix: str, name: Any) -> str:
    # a file may hold one long name, and use it in many modules
    if not isinstance(name, str) or len(name) > MOST_NAME:
        raise _Misfit(f"a name in it is no text of {MOST_NAME} characters or less")
    return prefix + name


def _mapping(module: Persistent, group: str) -> dict[Any, Any]:
    found = module.state.get(group, {})
    if not isinstance(found, dict):
        raise _Misfit(f"{group} of a module is no mapping")
    return found


def shape_of(stored: StoredNetwork) -> Shape:
    """Return the shape of a generator, derived from the shapes of its weights."""
    weights, attributes = stored.weights, stored.attributes
    if any(name.startswith("mapping.embed.") for name in weights):
        raise _Misfit("its generator is conditioned on a class, and only unconditional ones are read")
    sides = sorted(
        int(match[1]) for name in weights if (match := re.fullmatch(r"synthesis\.b(\d{1,4})\.conv1\.weight", name))
    )
    mapping = sorted(name for name in weights if re.fullmatch(r"mapping\.fc\d{1,2}\.weight", name))
    if not sides or not mapping or sides[-1] > MOST_SIDE:
        raise _Misfit("its generator has no mapping and synthesis networks of the public names")
    try:
        widths = {side: weights[f"synthesis.b{side}.conv1.weight"].size[0] for side in sides}
        widest = max(widths.values())
        narrow = [side * width for side, width in widths.items() if width < widest]
        clamp = attributes.get("synthesis.b4.conv1.conv_clamp")
        w_dim, z_dim = weights["mapping.fc0.weight"].size
        return Shape(
            size=sides[-1],
            channels=weights["synthesis.b4.torgb.weight"].size[0],
            z_dim=z_dim,
            w_dim=w_dim,
            layers=len(mapping),
            mapping_lr=float(attributes.get("mapping.fc0.bias_gain", 0.01)),
            channel_base=max(narrow, default=widest * sides[-1]),
            channel_max=widest,
            clamp=None if clamp is None else float(clamp),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise _Misfit(f"its generator is of no known shape ({shorten(str(error))})") from error


def _discriminator(shape: Shape, stored: StoredNetwork) -> Discriminator | None:
    group = stored.attributes.get("b4.mbstd.group_size", shape.group)
    try:
        full = Shape(**{**vars(shape), "group": int(group)})
        return _loaded(Discriminator, full, stored, "D")
    except (_Misfit, ValueError, OverflowError) as error:
        log.warning("the discriminator of the file is left out: %s", error)
        return None


def _loaded(kind: type[Network], shape: Shape, stored: StoredNetwork, name: str) -> Network:
    """Build a network and fill in its weights; names and shapes are compared before anything is allocated."""
    with torch.device("meta"):
        empty = kind(shape)
    wanted = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
    given = {key: value.size for key, value in stored.weights.items()}
    if wanted != given:
        differ = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
        raise _Misfit(
            f"{len(differ)} weights of {name} differ in name or shape from those of its kind, e.g. {differ[0]}"
        )
    network = empty.to_empty(device="cpu")
    network.load_state_dict({key: value.tensor() for key, value in stored.weights.items()})
    return network.eval()
