"""The wrapper around a GAN's generator: latents, images, samples, save and load."""

import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset
from unlearn.data.identities import IdentityData
from unlearn.models.base import Wrapper, stored_dtypes
from unlearn.models.gan.dcgan import DCGAN
from unlearn.models.gan.recall import recall
from unlearn.models.gan.serialization import DISCRIMINATOR, read_discriminator, read_generator, write_generator
from unlearn.models.gan.stylegan2.augment import Augment
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.stylegan2.generator import Generator, Noise, StyledConv, ToRGB
from unlearn.models.gan.stylegan2.layers import Linear

LAZY = 16
"""Steps from one penalty of the adversary to the next."""

LAZY_PATHS = 8
"""Steps from one penalty on the generator's path lengths to the next."""

R1 = 1.0
"""Default weight of the penalty on the adversary's gradient."""

KINDS = ("mapping", "synthesis", "to_rgb", "affine", "style_convolution", "noise", "constant")
"""Kinds of parameters that a recipe's ``scope.kinds`` may name, besides the kinds of layer that every model has."""


class LatentGenerator(Wrapper):
    """A generator that turns latents into images in two stages, z to w and w to images.

    Args:
        generator: StyleGAN2's ``Generator`` or a ``DCGAN``.
        levels: number of grey levels of its images.
        truncation: psi of samples: 1 samples all latents, smaller values nearer to the mean of w.
        fresh: whether ``w_avg`` is still unknown; it is then measured on each access.
        trained_against: file of the discriminator's weights that initialise its adversary, None for random ones.

    Attributes:
        num_ws: number of layers that take a w.
        image_shape: (C, H, W).
        w_dim: number of dimensions of w.
        r1: weight gamma of the penalty on the adversary's gradient at real images.
        mixing: share of the training images whose later layers get another w than the earlier ones.
        paths: weight of the penalty on path lengths.
        augment: how images are augmented before the adversary sees them, None for no augmentation.
    """

    family: ClassVar[str] = "gan"
    reads: ClassVar[tuple[str, ...]] = ("image", "seed", "w")
    recall = recall

    num_ws: int
    image_shape: tuple[int, int, int]
    w_dim: int
    levels: int
    r1: float = R1
    mixing: float = 0.0
    paths: float = 0.0
    augment: Augment | None = None
    layer_kinds: ClassVar[dict[str, tuple[type[nn.Module], ...]]] = {"linear": (nn.Linear, Linear)}
    low_rank_layers: ClassVar[tuple[type[nn.Module], ...]] = (nn.ConvTranspose2d, Linear, StyledConv, ToRGB)

    def __init__(
        self,
        generator: Generator | DCGAN,
        levels: int = 256,
        truncation: float = 1.0,
        fresh: bool = False,
        trained_against: Path | None = None,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.num_ws, self.image_shape, self.w_dim = generator.num_ws, generator.image_shape, len(generator.w_avg)
        self.levels, self.truncation, self.fresh = levels, truncation, fresh
        self.trained_against = trained_against
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the weights."""
        return next(self.generator.parameters()).dtype

    @property
    def w_avg(self) -> Tensor:
        """Mean of w, (w_dim,); of an untrained generator it is measured at each call."""
        if self.fresh:
            self._measure_mean()
        return self.generator.w_avg

    @torch.no_grad()
    def _measure_mean(self) -> None:
        ids = torch.arange(4096, device=self.generator.w_avg.device)
        self.generator.w_avg.copy_(self.mapping(self.latent(ids, Randomness(0, "w_avg"))).mean(dim=0))

    @override
    def read(self, dataset: Dataset) -> Dataset:
        if isinstance(dataset, IdentityData):
            return dataset.shaped(self.image_shape, self.levels, (self.num_ws, self.w_dim))
        return dataset

    @override
    def check_fits(self, info: dict[str, Any]) -> None:
        if "shape" in info and (tuple(info["shape"]), info["levels"]) != (self.image_shape, self.levels):
            raise RecipeError(
                f"The model makes images of shape {self.image_shape} and {self.levels} grey levels; the data has "
                f"shape {tuple(info['shape'])} and {info['levels']}. Type another model.pretrained=FOLDER."
            )

    # latents

    def latent(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return z ~ N(0, 1), (B, z_dim), one per id (B,) int64."""
        return randomness.child("latents").normal(ids, (self.generator.z_dim,), self.dtype)

    def mapping(self, z: Tensor) -> Tensor:
        """Map z (B, z_dim) to w (B, w_dim); for a DCGAN z itself."""
        return self.generator.mapping(z)

    def broadcast(self, w: Tensor) -> Tensor:
        """Return one w per layer, (B, num_ws, w_dim); w is (B, w_dim), or has one per layer already."""
        return w if w.dim() == 3 else w[:, None].expand(-1, self.num_ws, -1)

    def noises(self, ids: Tensor, randomness: Randomness) -> list[Tensor]:
        """Return normal noise for every layer, (B, 1, r, r) each, one per id; none for a DCGAN."""
        stream = randomness.child("noise")
        sides = self.generator.noise_sides()
        return [stream.child(str(k)).normal(ids, (1, side, side), self.dtype) for k, side in enumerate(sides)]

    def synthesis(self, w: Tensor, noise: Noise = None) -> Tensor:
        """Return images (B, C, H, W), about in [-1, 1], with gradient.

        Args:
            w: (B, w_dim), or one per layer (B, num_ws, w_dim).
            noise: what ``noises`` gave; None for the layers' own constant noise.
        """
        return self.both(w, noise)[0]

    def both(self, w: Tensor, noise: Noise = None) -> tuple[Tensor, Tensor]:
        """Return the images, and the features (B, D, h, w) that the last layer turns into them; see ``synthesis``."""
        images, features = self.generator.synthesis(self.broadcast(w), noise)
        return images, features

    def truncated(self, w: Tensor) -> Tensor:
        """Return w_avg + psi (w - w_avg), (B, num_ws, w_dim), psi that of samples (StyleGAN, 2019, appendix B)."""
        ws = self.broadcast(w)
        if self.truncation == 1:
            return ws  # without measuring the mean
        mean = self.w_avg
        return mean + self.truncation * (ws - mean)

    # images

    def pixels(self, batch: Batch) -> Tensor:
        """Return the images of a batch in [-1, 1], (B, C, H, W)."""
        if "image" not in batch:
            raise RecipeError("The data has no images, and this asks for images. Give images.")
        return batch["image"].to(self.dtype) * (2 / (self.levels - 1)) - 1

    def images(self, x: Tensor) -> Tensor:
        """Return images in [-1, 1] as grey levels, (B, C, H, W) uint8."""
        # [-1, 1] -> 0 ... levels - 1; NaN of a diverged model become black
        grey = ((x + 1) * (self.levels - 1) / 2).round().clamp(0, self.levels - 1)
        return torch.nan_to_num(grey).to(torch.uint8)

    @torch.no_grad()
    def sample(self, ids: Tensor, randomness: Randomness, like: Batch | None = None) -> Batch:
        """Draw one image per id, (B,) int64: ``id`` and ``image`` (B, C, H, W) uint8, with constant noise."""
        w = self.mapping(self.latent(ids, randomness))
        return {"id": ids, "image": self.images(self.synthesis(self.truncated(w)))}

    # training

    def adversary(self, randomness: Randomness) -> Discriminator:
        """Return a discriminator of the generator's shape, on its device and in its float type.

        Its weights are random, or those of the file that the generator came from (``trained_against``).
        """
        if not isinstance(self.generator, Generator):
            raise RecipeError("A DCGAN is not trained here: it has no discriminator. Type model=stylegan2.")
        if self.trained_against is not None:
            discriminator = read_discriminator(self.trained_against, self.generator.shape)
        else:
            with randomness.child("adversary").seeding():
                discriminator = Discriminator(self.generator.shape)
        return discriminator.to(next(self.generator.parameters()))

    def drawn(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return new images, (B, C, H, W), one per id, each with its own noise, with gradient."""
        return self.synthesis(self.mixed(ids, randomness), self.noises(ids, randomness))

    def mixed(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Return new latents, (B, num_ws, w_dim), one per id: a share ``mixing`` of them of two w.

        The first of the layers that take the second w is drawn evenly from all but the first layer (style mixing:
        Karras et al., StyleGAN, 2019, section 3.1, arXiv:1812.04948).
        """
        w = self.mapping(self.latent(ids, randomness))
        ws = self.broadcast(w)
        if not self.mixing or self.num_ws < 2:
            return ws
        stream = randomness.child("mixing")
        other = self.broadcast(self.mapping(self.latent(ids, stream)))
        first = 1 + stream.child("layer").integers(ids, self.num_ws - 1, ())
        # num_ws: no layer takes the second w
        first = torch.where(stream.child("share").uniform(ids, ()) < self.mixing, first, self.num_ws)
        layer = torch.arange(self.num_ws, device=ws.device)
        return torch.where((layer < first[:, None])[:, :, None], ws, other)

    def training_loss(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Refuse: a GAN's loss needs its adversary; see ``adversarial_loss``."""
        raise RecipeError("The training loss of a GAN is known only to its adversary. Type retain=training_loss.")

    def shown(self, images: Tensor, ids: Tensor, randomness: Randomness, p: float) -> Tensor:
        """Return images (B, C, H, W) as the adversary sees them: each transform is applied with probability p."""
        return images if self.augment is None or p == 0 else self.augment(images, ids, randomness.child("augment"), p)

    def adversarial_loss(
        self,
        adversary: nn.Module,
        batch: Batch,
        randomness: Randomness,
        augmented: float = 0.0,
        length: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return -log D(G(z)) per item, (B,), in nats, and at every 8th step the path lengths |J^T y|, (B,).

        The loss is the non-saturating one of Goodfellow et al. 2014, section 3. At every 8th step it has the penalty
        8 gamma (|J^T y| - a)^2 on the same images, before augmentation (lazy regularisation, StyleGAN2, section 3.1):
        a step in w should change the image by the same amount everywhere (section 3.2, eq. 4). gamma is ``paths``.

        Args:
            adversary: the discriminator.
            batch: of items.
            randomness: of this step.
            augmented: probability of each transform.
            length: a, the mean length of earlier steps; None where there is none, and so no penalty yet.
        """
        ids = batch["id"]
        penalised = self.paths > 0 and randomness.step % LAZY_PATHS == 0 and torch.is_grad_enabled()
        ws = self.mixed(ids, randomness)
        if penalised and not ws.requires_grad:  # the mapping network is frozen
            ws = ws.detach().requires_grad_()
        drawn = self.synthesis(ws, self.noises(ids, randomness))
        loss: Tensor = softplus(-adversary(self.shown(drawn, ids, randomness, augmented)))  # -log sigmoid(l)
        if not penalised:
            return loss, None
        lengths = self.path_lengths(ids, randomness, ws, drawn)
        if length is not None:
            # the factor makes up for the steps without the penalty
            loss = loss + LAZY_PATHS * self.paths * (lengths - length).square()
        return loss, lengths.detach()

    def path_lengths(self, ids: Tensor, randomness: Randomness, ws: Tensor, drawn: Tensor) -> Tensor:
        """Return |J^T y| per item, (B,), with gradient.

        J is the derivative of the image with respect to w, y an image of normal noise over sqrt(H W), |J^T y| the root
        of the mean over layers of the squared length; with these scales the paper's gamma is 2 (StyleGAN2, appendix B).

        Args:
            ids: of the noise y, (B,).
            randomness: of the noise y.
            ws: one w per layer, (B, num_ws, w_dim).
            drawn: their images, (B, C, H, W).
        """
        height, width = drawn.shape[-2:]
        noise = randomness.child("paths").normal(ids, tuple(drawn.shape[1:]), drawn.dtype)
        # J^T y is the gradient of <G(w), y>: one backward pass, and no Jacobian; items do not depend on one another
        total = (drawn * noise).sum() / math.sqrt(height * width)
        (slope,) = torch.autograd.grad(total, ws, create_graph=True)
        lengths: Tensor = slope.square().sum(dim=2).mean(dim=1).sqrt()
        return lengths

    def adversary_loss(
        self, adversary: nn.Module, batch: Batch, randomness: Randomness, augmented: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return -log D(x) - log(1 - D(G(z))) in nats, and the logits of D(x), per item, (B,) each.

        Every 16th step adds the penalty 16 gamma / 2 |grad D(x)|^2 (R1 of Mescheder et al. 2018, eq. 9,
        arXiv:1801.04406, lazy as in StyleGAN2, section 3.1), with respect to x before augmentation. Generated and
        real images pass in separate batches. The discriminator sees the spread of its batch, so the loss of an item
        depends on the other items, and on how the batch is split among ranks.
        """
        ids = batch["id"]
        with torch.no_grad():
            drawn = self.shown(self.drawn(ids, randomness), ids, randomness.child("drawn"), augmented)
        penalised = self.r1 > 0 and randomness.step % LAZY == 0 and torch.is_grad_enabled()
        real = self.pixels(batch).requires_grad_(penalised)
        logits: Tensor = adversary(self.shown(real, ids, randomness.child("real"), augmented))
        # -log sigmoid(l) = softplus(-l), and -log(1 - sigmoid(l)) = softplus(l)
        loss: Tensor = softplus(-logits) + softplus(adversary(drawn))
        if penalised:
            (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            loss = loss + LAZY * self.r1 / 2 * slope.square().flatten(1).sum(dim=1)
        return loss, logits.detach()

    # scope

    def parameter_kinds(self) -> dict[str, list[str]]:
        """Return the names of the parameters of each kind, for ``scope.kinds``; a kind that is not there is empty."""
        kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
        parts = {"to_rgb": ".torgb.", "affine": ".affine.", "noise": ".noise_strength.", "constant": ".const."}
        convolutions = [place for place, module in self.named_modules() if isinstance(module, StyledConv)]
        for name, _ in self.named_parameters():
            kinds["mapping" if ".mapping." in name else "synthesis"].append(name)
            for kind in (kind for kind, part in parts.items() if part in f"{name}."):
                kinds[kind].append(name)
            if name.rpartition(".")[0] in convolutions and not name.endswith("noise_strength"):
                kinds["style_convolution"].append(name)
        return kinds

    # files

    @override
    @property
    def stored(self) -> nn.Module:
        return self.generator

    @override
    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        if self.fresh:
            self._measure_mean()
        write_generator(self.generator, self.levels, self.truncation, Path(folder), self.types_to_save(dtype))

    @override
    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        generator, levels, truncation = read_generator(Path(folder))
        discriminator = Path(folder) / DISCRIMINATOR
        against = discriminator if discriminator.is_file() else None
        if against is not None and isinstance(generator, Generator):
            read_discriminator(against, generator.shape)  # a broken one is refused before any work
        model = cls(generator, levels, truncation, trained_against=against)
        model.saved = stored_dtypes(generator, [Path(folder) / "model.safetensors"])
        return model
