"""The latents of items: of seeds, of latents themselves, and of images, which are inverted or encoded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Dataset
from unlearn.data.identities import fits
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.feature_extractors.embedders import Perceptual, perceptual_net
from unlearn.models.feature_extractors.torchscript import BLANK, answer, misfit, scripted
from unlearn.models.gan.inversion import Inversion

SEEDS = Randomness(0, "identities")
"""Stream of the latents of seeds, the same in every run."""

AT_ONCE = 16
"""Images that are inverted per batch, each independently of the others."""


def latents_of(
    model: ImageGenerator, dataset: Dataset, ids: Tensor, inversion: Inversion | str, randomness: Randomness
) -> Tensor:
    """Return the latents of items, (n, num_ws, w_dim), one per layer, without gradient, in the model's float type.

    Deterministic in its arguments and, up to rounding, independent of how the items are batched.

    Args:
        model: a GAN.
        dataset: of identities, or of images.
        ids: of the items, (n,).
        inversion: how the latents of images are found; or the path of an encoder, a TorchScript file (``.pt``) that
            maps images (B, C, H, W) in [-1, 1] to latents (B, w_dim) or (B, num_ws, w_dim).
        randomness: of the noise of an inversion.

    Raises:
        RecipeError: an item is neither a seed nor an image nor a latent, or a latent does not fit the model.
    """
    found = torch.empty(len(ids), model.num_ws, model.w_dim, dtype=model.dtype, device=model.w_avg.device)
    rows = [(place, _kind(dataset, item)) for place, item in enumerate(ids.tolist())]
    for kind in ("seed", "image", "w"):  # a batch holds one kind
        places = torch.tensor([place for place, what in rows if what == kind], dtype=torch.int64)
        for part in places.split(AT_ONCE) if len(places) else ():
            batch = dataset.batch(ids[part.to(ids.device)].cpu())
            batch = {key: value.to(found.device) for key, value in batch.items()}
            found[part.to(found.device)] = _of(kind, model, batch, inversion, randomness)
    return found


def latents_of_seeds(model: ImageGenerator, seeds: Tensor) -> Tensor:
    """Return the latents of seeds (n,), (n, num_ws, w_dim), without gradient."""
    with torch.no_grad():
        w = model.mapping(model.latent(seeds.to(model.w_avg.device), SEEDS))
    return layered(model, w)


def layered(model: ImageGenerator, w: Tensor) -> Tensor:
    """Return w (B, w_dim), (B, 1, w_dim) or (B, num_ws, w_dim) as one per layer, (B, num_ws, w_dim)."""
    w = w if w.dim() == 3 else w[:, None]
    if not fits(w.shape[1:], (model.num_ws, model.w_dim)):
        raise RecipeError(
            f"A latent of shape {tuple(w.shape[1:])} does not fit the model, whose latents are "
            f"({model.num_ws}, {model.w_dim}), or ({model.w_dim},) for all layers."
        )
    return w.expand(-1, model.num_ws, -1)


def check_encoder(encoder: str | None, info: Mapping[str, Any]) -> None:
    """Refuse an encoder that is not there or does not map images to latents, whether or not any item is an image.

    Args:
        encoder: path of a TorchScript file; None for none.
        info: of the data: ``shape`` (C, H, W) and ``latent`` (num_ws, w_dim), where they are known.
    """
    network = scripted(encoder, "encoder")[1] if encoder is not None else None
    if network is None or "shape" not in info:
        return
    given = answer(network, tuple(info["shape"]), f"encoder {encoder}")
    latent = info.get("latent")
    if len(given) not in (2, 3) or given[0] != BLANK or (latent and not fits(given[1:], latent)):
        width = latent[1] if latent else "w_dim"
        wanted = f"latents ({BLANK}, {width}), or ({BLANK}, {latent[0] if latent else 'num_ws'}, {width})"
        raise misfit(f"encoder {encoder}", info["shape"], given, wanted)


def _kind(dataset: Dataset, item: int) -> str:
    if hasattr(dataset, "kind"):
        return str(dataset.kind(item))
    if "image" in dataset.batch(torch.tensor([item])):
        return "image"
    raise RecipeError("The items of the data are neither images nor latents of a generator. Type data=identities.")


def _of(
    kind: str, model: ImageGenerator, batch: dict[str, Tensor], inversion: Inversion | str, randomness: Randomness
) -> Tensor:
    if kind == "seed":
        return latents_of_seeds(model, batch["seed"])
    if kind == "w":
        return layered(model, batch["w"].to(model.dtype))
    return invert(model, model.pixels(batch), batch["id"], inversion, randomness)


def invert(
    model: ImageGenerator, images: Tensor, ids: Tensor, inversion: Inversion | str, randomness: Randomness
) -> Tensor:
    """Return the latents of images (B, C, H, W) in [-1, 1], (B, num_ws, w_dim); arguments as ``latents_of``.

    An inversion compares pixels and, where a packaged perceptual net fits the images, what that net sees.
    """
    if isinstance(inversion, str):
        encoder = scripted(inversion, "encoder")[1].to(images.device)
        with torch.no_grad():
            found = encoder(images.float()).to(model.dtype)
        try:
            return layered(model, found)
        except RecipeError as error:
            raise RecipeError(f"The encoder {inversion}: {error}") from error
    distance = packaged_perceptual(tuple(images.shape[1:])) if inversion.features else None
    return layered(model, inversion(model, images, ids, randomness, distance))


def packaged_perceptual(shape: tuple[int, ...]) -> Perceptual | None:
    """Return the packaged perceptual distance that fits images of a shape (C, H, W), None where there is none."""
    try:
        return perceptual_net(None, shape)
    except RecipeError:
        return None
